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
from megatron_ext.data.curriculum.score_file import score_path, write_scores
from megatron_ext.data.curriculum.settings import METHODS, CurriculumSettings
from megatron_ext.data.curriculum.stages import parse_stage
from megatron_ext.data.order_file import FileOrder, OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import WindowView
from megatron_ext.errors import ConfigError, DataError
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


@pytest.fixture
def scored(tmp_path: Path) -> tuple[IndexedDataset, OrderTarget]:
    """A dataset whose documents have one of 40 scores, and what its samples are."""
    prefix = make_dataset(tmp_path, count=300)
    store = IndexedDataset(prefix)
    scores = np.random.default_rng(0).integers(-20, 20, store.num_documents).astype(np.float32)
    write_scores(prefix, "made_up", [scores], {"by": "a test"})
    return store, WindowView(store, Span(10, 300), 8).target


def naive(store: IndexedDataset, target: OrderTarget, settings: CurriculumSettings) -> list[int]:
    """Sort everything, then put each rank where the method says."""
    scores = np.fromfile(score_path(store.prefix, "made_up"), np.float32)[-store.num_documents :]
    difficulties = np.concatenate(list(sample_difficulties(store, target, scores)))
    by_rank = np.argsort(-difficulties if settings.reverse else difficulties, kind="stable")
    order = settings.order(target.num_samples, target.seq_length)
    places = order.places(np.arange(target.num_samples))
    given = dict(zip(places.tolist(), by_rank.tolist(), strict=True))
    return [given[place] for place in range(order.num_places)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("room", [16, None])
def test_it_equals_the_order_made_in_memory(name: str, room: int | None, scored, tmp_path: Path, monkeypatch):
    if room:
        for module, size in ((bucket_sort, "_SMALLEST_RANGE"), (build, "_PLACES_AT_ONCE"), (sort_keys, "_BLOCK")):
            monkeypatch.setattr(module, size, room)
        monkeypatch.setattr(build, "_TRACED", room)
    store, target = scored
    trace = build_curriculum(store, target, "made_up", SETTINGS[name], tmp_path / "x.order")
    order = FileOrder(tmp_path / "x.order", target)
    wanted = naive(store, target, SETTINGS[name])
    assert order.sample_ids(0, len(order)).tolist() == wanted
    assert trace.num_places == len(wanted) == (150 if name == "staged" else target.num_samples)
    scores = np.fromfile(score_path(store.prefix, "made_up"), np.float32)[-store.num_documents :]
    difficulties = np.concatenate(list(sample_difficulties(store, target, scores)))
    assert np.array_equal(trace.difficulties, difficulties[np.array(wanted)[trace.places]])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.bin",
        "data.idx",
        "data.made_up.scores",
        "x.order",
    ]


def test_equal_settings_give_equal_files_and_the_seed_another(scored, tmp_path: Path):
    contents = []
    for seed in (1, 1, 2):
        build_curriculum(*scored, "made_up", CurriculumSettings("paced", seed), tmp_path / "x.order")
        contents.append((tmp_path / "x.order").read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("method", METHODS)
def test_the_header_says_what_it_was_made_from_and_how(method: str, scored, tmp_path: Path):
    settings = CurriculumSettings(method, 5, stages=SETTINGS["staged"].stages)
    build_curriculum(*scored, "made_up", settings, tmp_path / "x.order")
    header = json.loads((tmp_path / "x.order").read_bytes().split(b"\n", 1)[0])
    made_by = header["made_by"]
    assert made_by["score"]["metric"] == "made_up" and len(made_by["score"]["sha256"]) == 64
    assert made_by["score"]["made_by"] == {"by": "a test"} and made_by["seed"] == 5 and made_by["method"] == method
    assert header["target"]["dataset"] == scored[0].identity
    assert ("permutation" in header, "distinct" in header) == (method != "staged", method == "staged")
    assert ("pacing" in made_by, "stages" in made_by) == (method == "paced", method == "staged")
    assert FileOrder(tmp_path / "x.order", scored[1]).made_by == made_by


def test_scores_of_other_data_or_missing_documents_are_refused(scored, tmp_path: Path):
    store, target = scored
    other = make_dataset(tmp_path, "other", seed=1, count=300)
    score_path(other, "made_up").write_bytes(score_path(store.prefix, "made_up").read_bytes())
    other_store = IndexedDataset(other)
    with pytest.raises(DataError, match=r"made for other data: its dataset is"):
        build_curriculum(other_store, target, "made_up", SETTINGS["sorted"], tmp_path / "x.order")
    with pytest.raises(DataError, match="no scores"):
        build_curriculum(store, target, "absent", SETTINGS["sorted"], tmp_path / "x.order")
    path = score_path(store.prefix, "made_up")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="300 scores"):
        build_curriculum(store, target, "made_up", SETTINGS["sorted"], tmp_path / "x.order")
    assert not list(tmp_path.glob("x.order*"))


def test_stages_that_ask_for_too_much_are_refused_and_leave_nothing(scored, tmp_path: Path):
    settings = CurriculumSettings("staged", stages=(parse_stage("0-10:1000000"),))
    with pytest.raises(DataError, match=r"asks for 125000 samples.*left \d+ samples"):
        build_curriculum(*scored, "made_up", settings, tmp_path / "x.order")
    with pytest.raises(ConfigError, match="no stages"):
        build_curriculum(*scored, "made_up", CurriculumSettings("staged"), tmp_path / "x.order")
    with pytest.raises(ConfigError, match="does not exist"):
        build_curriculum(*scored, "made_up", CurriculumSettings("sort"), tmp_path / "x.order")
    assert not list(tmp_path.glob("x.order*"))
