"""The command makes an order file that training accepts, for the data it was made for only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum.score_file import write_scores
from megatron_ext.data.datasets import DatasetRequest, build_datasets
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import ConfigError, DataError, MegatronExtError
from tests.unit.data.small import TOKENIZER, data_config, make_dataset
from tools import build_curriculum


def scored(folder: Path, name: str, seed: int) -> str:
    prefix = make_dataset(folder, name, seed, count=200)
    scores = np.random.default_rng(seed).normal(size=IndexedDataset(prefix).num_documents)
    write_scores(prefix, "made_up", [scores], {})
    return prefix


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return scored(tmp_path, "data", 0)


def build(prefix: str, tmp_path: Path, *words: object) -> None:
    fixed = ("--data-path", prefix, "--seq-length", 8, "--score", "made_up", "--output", tmp_path / "x.order")
    build_curriculum.main([str(word) for word in (*fixed, *words)])


def train_view(prefix: str, tmp_path: Path, seq_length: int = 8, others: tuple[str, ...] = (), **data: object):
    config = data_config(data_path=[prefix, *others], dataset_order=str(tmp_path / "x.order"), **data)
    return build_datasets(DatasetRequest(config, TOKENIZER, seq_length, (10, 5, 0), 1)).train


@pytest.mark.parametrize(
    ("words", "data"),
    [
        (["--split", "80,10,10"], {}),
        (["--split", "9,1", "--pad-last-sample"], {"split": "9,1", "pad_last_sample": True}),
        (
            ["--split", "80,10,10", "--dataset-packing", "documents", "--seq-length", 40],
            {"dataset_packing": "documents"},
        ),
    ],
)
def test_training_takes_the_file_with_the_same_flags(words: list, data: dict, prefix: str, tmp_path: Path, capsys):
    build(prefix, tmp_path, *words, "--method", "paced", "--plot", tmp_path / "x.png")
    view = train_view(prefix, tmp_path, 40 if "dataset_packing" in data else 8, **data)
    assert sorted(view.sample_ids(0, len(view)).tolist()) == list(range(len(view)))
    assert f"{len(view)} of {len(view)} samples" in capsys.readouterr().out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


STAGES = ["general*3@0-50,finance*1:1600", "general*1,2*1@20-100:800"]


@pytest.mark.parametrize(
    ("method", "given_out"),
    [(["paced"], None), (["sorted", "--reverse"], None), (["staged", "--stages", *STAGES], 300)],
)
def test_several_datasets_are_ordered_together(
    method: list[str], given_out: int | None, tmp_path: Path, monkeypatch, capsys
):
    general, finance = scored(tmp_path, "general", 0), scored(tmp_path, "finance", 1)
    words = ["--data-path", general, finance, "--split", "80,10,10", "--method", *method]
    words += ["--plot", tmp_path / "x.png"] if given_out else []
    build("unused", tmp_path, *words)
    view = train_view(general, tmp_path, others=(finance,))
    ids = view.sample_ids(0, given_out or len(view))
    assert len(set(ids.tolist())) == len(ids)
    out = capsys.readouterr().out
    assert f"{len(ids)} of {len(view)} samples" in out and ("share of each dataset" in out) == bool(given_out)
    if given_out:
        sources = view.sources_of(ids)
        assert [int(part.sum()) for part in np.split(sources, [200])] == [50, 50]
    with pytest.raises(DataError, match="identity of dataset 1 of 2"):
        train_view(finance, tmp_path, others=(general,))
    with pytest.raises(DataError, match="number of datasets is 2"):
        train_view(general, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["3", "general", "1", "finance"], "--data-path gives weights of datasets.*--stages"),
        (["3", "general", "finance"], "cannot be read"),
        (["general", "absent"], "absent"),
        (["general", "unscored"], r"no scores .*unscored\.made_up"),
        (["general", "general", "--method", "staged", "--stages", "general*1:80"], "may be dataset 1 or 2"),
    ],
)
def test_datasets_that_cannot_be_ordered_together_are_refused(words: list[str], message: str, tmp_path: Path):
    made = {name: scored(tmp_path, name, seed) for seed, name in enumerate(("general", "finance"))}
    made["unscored"] = make_dataset(tmp_path, "unscored", 3)
    with pytest.raises(MegatronExtError, match=message):
        build("unused", tmp_path, "--method", "sorted", "--data-path", *(made.get(word, word) for word in words))
    assert not list(tmp_path.glob("x.order*"))


def test_training_refuses_it_with_another_split_length_or_dataset(prefix: str, tmp_path: Path):
    build(prefix, tmp_path, "--split", "80,10,10", "--method", "sorted")
    train_view(prefix, tmp_path)
    other = make_dataset(tmp_path, "other", seed=1)
    for path, seq_length, data, message in (
        (prefix, 8, {"split": "70,20,10"}, "last_sequence is 160.*140"),
        (prefix, 9, {}, "seq_length is 8.*9"),
        (prefix, 8, {"pad_last_sample": True}, "num_samples is"),
        (other, 8, {}, "dataset is"),
    ):
        with pytest.raises(DataError, match=f"was made for other data: its {message}"):
            train_view(path, tmp_path, seq_length, **data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "sorted", "--train-data-path", "x"], "not named"),
        (["--method", "sorted", "--seq-length", "0"], "--seq-length 0"),
        (["--method", "sorted", "--split", "0,1"], "leaves nothing"),
        (["--method", "sorted", "--jitter-buckets", "-1"], "--jitter-buckets -1"),
        (["--method", "sorted", "--score", "../x"], "cannot name scores"),
        (["--method", "interleaved", "--buckets", "0"], "--buckets 0"),
        (["--method", "warmup", "--warmup-share", "1"], "--warmup-share"),
        (["--method", "paced", "--pacing", "list", "--points", "0"], "--points 0 cannot be read"),
        (["--method", "staged", "--stages", "0-50:1e9"], "asks for 125000000 samples"),
        (["--method", "staged", "--stages", "0-50"], "RANGES:TOKENS"),
        (["--method", "staged", "--stages", "data*-1:80"], "weight of data"),
        (["--method", "staged", "--stages", "data*1:80", "--jitter-buckets", "2"], "--jitter-buckets 2"),
        (["--method", "sorted", "--output", "absent_folder/x.order"], "absent_folder"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(words: list[str], message: str, prefix: str, tmp_path: Path):
    with pytest.raises(MegatronExtError, match=message):
        build(prefix, tmp_path, *words)
    assert not list(tmp_path.glob("x.order*"))


def test_the_help_names_every_method(capsys):
    with pytest.raises(SystemExit):
        build_curriculum.main(["--help"])
    assert "sorted,paced,interleaved,warmup,staged" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--method"):
        build_curriculum.main(["--seq-length", "8", "--score", "x", "--output", "y"])
