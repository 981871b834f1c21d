"""An order file built outside of memory equals one built from lists, fits its run, and says how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum import bucket_sort, build, sort_keys
from megatron_ext.data.curriculum.build import build_curriculum
from megatron_ext.data.curriculum.difficulty import sample_difficulties
from megatron_ext.data.curriculum.pacing import Pacing
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.data.curriculum.score_file import score_path, write_scores
from megatron_ext.data.curriculum.settings import METHODS, CurriculumSettings
from megatron_ext.data.curriculum.stages import parse_stage
from megatron_ext.data.joined_view import joined_target
from megatron_ext.data.order_file import FileOrder, OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import WindowView
from megatron_ext.errors import ConfigError, DataError, MegatronExtError
from tests.unit.data.small import make_dataset

SETTINGS = {
    "sorted": CurriculumSettings("sorted"),
    "reverse": CurriculumSettings("sorted", reverse=True),
    "jitter": CurriculumSettings("sorted", jitter_buckets=7),
    "paced": CurriculumSettings("paced", pacing=Pacing("root")),
    "interleaved": CurriculumSettings("interleaved", buckets=6),
    "warmup": CurriculumSettings("warmup", warmup_share=0.3),
    "staged": CurriculumSettings("staged", stages=(parse_stage("0-30:200"), parse_stage("20-100:1000"))),
}
NAMED = CurriculumSettings(
    "staged", stages=(parse_stage("data*3@0-50,other*1@0-30:400"), parse_stage("1*1,other*2@20-100:800"))
)
Scored = tuple[IndexedDataset, OrderTarget]


def made_up(folder: Path, name: str, seed: int, count: int) -> Scored:
    """A dataset whose documents have one of 40 scores, and what its samples are."""
    prefix = make_dataset(folder, name, seed, count)
    store = IndexedDataset(prefix)
    scores = np.random.default_rng(seed).integers(-20, 20, store.num_documents).astype(np.float32)
    write_scores(prefix, "made_up", [scores], {"by": "a test"})
    return store, WindowView(store, Span(10, count), 8).target


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return made_up(tmp_path, "data", 0, 300)


@pytest.fixture
def several(scored: Scored, tmp_path: Path) -> list[Scored]:
    return [scored, made_up(tmp_path, "other", 1, 120)]


def difficulties_in(datasets: list[Scored]) -> list[np.ndarray]:
    found = []
    for store, target in datasets:
        scores = np.fromfile(score_path(store.prefix, "made_up"), np.float32)[-store.num_documents :]
        found.append(np.concatenate(list(sample_difficulties(store, target, scores))))
    return found


def naive(datasets: list[Scored], settings: CurriculumSettings) -> list[int]:
    """Sort everything, then put each rank where the method says."""
    own = [-d if settings.reverse else d for d in difficulties_in(datasets)]
    sizes = [len(d) for d in own]
    if settings.ranks_datasets_apart:
        starts = np.cumsum([0, *sizes])
        by_rank = np.concatenate([s + np.argsort(d, kind="stable") for s, d in zip(starts, own, strict=False)])
    else:
        by_rank = np.argsort(np.concatenate(own), kind="stable")
    names = tuple(Path(store.prefix).name for store, _ in datasets)
    order = settings.order(SampleSpace(names, tuple(sizes), datasets[0][1].seq_length))
    given = dict(zip(order.places(np.arange(len(by_rank))).tolist(), by_rank.tolist(), strict=True))
    return [given[place] for place in range(order.num_places)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("room", [16, None])
def test_it_equals_the_order_made_in_memory(name: str, room: int | None, scored, tmp_path: Path, monkeypatch):
    if room:
        for module, size in ((bucket_sort, "_SMALLEST_RANGE"), (build, "_PLACES_AT_ONCE"), (sort_keys, "_BLOCK")):
            monkeypatch.setattr(module, size, room)
        monkeypatch.setattr(build, "_TRACED", room)
    trace = build_curriculum([scored], "made_up", SETTINGS[name], tmp_path / "x.order")
    order = FileOrder(tmp_path / "x.order", scored[1])
    wanted = naive([scored], SETTINGS[name])
    assert order.sample_ids(0, len(order)).tolist() == wanted
    assert trace.num_places == len(wanted) == (150 if name == "staged" else scored[1].num_samples)
    assert np.array_equal(trace.difficulties, difficulties_in([scored])[0][np.array(wanted)[trace.places]])
    assert not trace.sources.any() and trace.source_names == ("data",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.bin",
        "data.idx",
        "data.made_up.scores",
        "x.order",
    ]


@pytest.mark.parametrize("name", [*SETTINGS, "named"])
@pytest.mark.parametrize("room", [16, None])
def test_several_datasets_are_ordered_together(name: str, room: int | None, several, tmp_path: Path, monkeypatch):
    if room:
        for module, size in ((bucket_sort, "_SMALLEST_RANGE"), (build, "_PLACES_AT_ONCE"), (sort_keys, "_BLOCK")):
            monkeypatch.setattr(module, size, room)
        monkeypatch.setattr(build, "_TRACED", room)
    settings = NAMED if name == "named" else SETTINGS[name]
    trace = build_curriculum(several, "made_up", settings, tmp_path / "x.order")
    order = FileOrder(tmp_path / "x.order", joined_target([target for _, target in several]))
    wanted = naive(several, settings)
    assert order.sample_ids(0, len(order)).tolist() == wanted and len(set(wanted)) == len(wanted)
    traced = np.array(wanted)[trace.places]
    assert np.array_equal(trace.difficulties, np.concatenate(difficulties_in(several))[traced])
    assert np.array_equal(trace.sources, traced >= several[0][1].num_samples)
    assert trace.source_names == ("data", "other")
    assert not list(tmp_path.glob("x.order?*"))


def test_named_stages_give_each_dataset_its_quota_of_its_percentiles(several, tmp_path: Path):
    build_curriculum(several, "made_up", NAMED, tmp_path / "x.order")
    order = FileOrder(tmp_path / "x.order", joined_target([target for _, target in several]))
    size = several[0][1].num_samples
    own = difficulties_in(several)
    first, second = np.split(order.sample_ids(0, len(order)), [50])
    for stage, quotas, shares in ((first, (38, 12), ((0, 50), (0, 30))), (second, (33, 67), ((0, 100), (20, 100)))):
        parts = [stage[stage < size], stage[stage >= size] - size]
        assert tuple(map(len, parts)) == quotas
        for difficulties, part, (low, high) in zip(own, parts, shares, strict=True):
            ranks = np.argsort(np.argsort(difficulties, kind="stable"))[part]
            assert ranks.min() >= round(low * len(difficulties) / 100)
            assert ranks.max() < round(high * len(difficulties) / 100)
    assert 10 < (first[:25] < size).sum() < 25, "the datasets of a stage are mixed"


def test_equal_settings_give_equal_files_and_the_seed_another(scored, tmp_path: Path):
    contents = []
    for seed in (1, 1, 2):
        build_curriculum([scored], "made_up", CurriculumSettings("paced", seed), tmp_path / "x.order")
        contents.append((tmp_path / "x.order").read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_header_says_what_it_was_made_from_and_how(method: str, scored, tmp_path: Path):
    settings = CurriculumSettings(method, 5, stages=SETTINGS["staged"].stages)
    build_curriculum([scored], "made_up", settings, tmp_path / "x.order")
    header = json.loads((tmp_path / "x.order").read_bytes().split(b"\n", 1)[0])
    made_by = header["made_by"]
    assert made_by["score"]["metric"] == "made_up" and len(made_by["score"]["sha256"]) == 64
    assert made_by["score"]["made_by"] == {"by": "a test"} and made_by["seed"] == 5 and made_by["method"] == method
    assert header["target"]["dataset"] == scored[0].identity
    assert ("permutation" in header, "distinct" in header) == (method != "staged", method == "staged")
    assert ("pacing" in made_by, "stages" in made_by) == (method == "paced", method == "staged")
    assert FileOrder(tmp_path / "x.order", scored[1]).made_by == made_by


def test_the_header_says_which_datasets_and_stages_it_was_made_from(several, tmp_path: Path):
    build_curriculum(several, "made_up", NAMED, tmp_path / "x.order")
    made_by = FileOrder(tmp_path / "x.order", joined_target([target for _, target in several])).made_by
    assert [part["name"] for part in made_by["datasets"]] == ["data", "other"] and "score" not in made_by
    assert len({part["score"]["sha256"] for part in made_by["datasets"]}) == 2
    assert {part["score"]["metric"] for part in made_by["datasets"]} == {"made_up"}
    assert made_by["stages"] == [stage.text for stage in NAMED.stages]


def test_scores_of_other_data_or_missing_documents_are_refused_with_their_file(several, tmp_path: Path):
    """Those of the second dataset, so that its prefix in the message says which it is."""
    (first, _), (second, _) = several
    path = score_path(second.prefix, "made_up")
    good = path.read_bytes()
    damaged = np.frombuffer(good[-4 * second.num_documents :], np.float32).copy()
    damaged[5] = np.nan
    for content, message in (
        (score_path(first.prefix, "made_up").read_bytes(), r"other\.made_up\.scores was made for other data"),
        (good[:-4], r"other\.made_up\.scores is damaged.*120 scores"),
        (good[: -damaged.nbytes] + damaged.tobytes(), r"score of document 5 in .*other\.made_up\.scores is nan"),
        (None, r"no scores .*other\.made_up\.scores"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            build_curriculum(several, "made_up", SETTINGS["sorted"], tmp_path / "x.order")
    assert not list(tmp_path.glob("x.order*"))


def test_stages_that_ask_for_too_much_are_refused_and_leave_nothing(scored, tmp_path: Path):
    settings = CurriculumSettings("staged", stages=(parse_stage("0-10:1000000"),))
    with pytest.raises(DataError, match=r"asks for 125000 samples.*left \d+ samples"):
        build_curriculum([scored], "made_up", settings, tmp_path / "x.order")
    with pytest.raises(ConfigError, match="no stages"):
        build_curriculum([scored], "made_up", CurriculumSettings("staged"), tmp_path / "x.order")
    with pytest.raises(ConfigError, match="does not exist"):
        build_curriculum([scored], "made_up", CurriculumSettings("sort"), tmp_path / "x.order")
    assert not list(tmp_path.glob("x.order*"))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("other*1@0-50:1e6", r"takes other .*asks for 125000 samples.*left \d+ samples"),
        ("else*1:80", r"else\*1:80 names 'else', which is no dataset.*1 data, 2 other"),
    ],
)
def test_named_stages_that_cannot_be_are_refused_and_leave_nothing(stage: str, message: str, several, tmp_path: Path):
    settings = CurriculumSettings("staged", stages=(parse_stage(stage),))
    with pytest.raises(MegatronExtError, match=message):
        build_curriculum(several, "made_up", settings, tmp_path / "x.order")
    assert not list(tmp_path.glob("x.order*"))
