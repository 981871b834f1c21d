"""Scores come back as they were written, for their own data only, and no damaged byte is accepted."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from megatron_ext.data.curriculum import score_file
from megatron_ext.data.curriculum.score_file import (
    ScoreFile,
    ScoreProgress,
    ScoreTarget,
    ScoreWriter,
    score_names,
    score_path,
    write_scores,
)
from megatron_ext.data.preprocessing.pending import partial_path
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.small import make_dataset


def scores(count: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@given(
    values=arrays.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_any_finite_scores_come_back_however_they_are_cut(tmp_path_factory, values: np.ndarray, cuts: list[int]):
    prefix = make_dataset(tmp_path_factory.mktemp("scores"), count=20)
    with mock.patch("os.fsync"):
        path = write_scores(prefix, "any", np.split(values, sorted(cuts)), {"tool": "test"})
    read = ScoreFile(prefix, "any")
    assert read.values.tobytes() == values.tobytes() and read.values.dtype == np.float32
    assert read.header["made_by"] == {"tool": "test"} and read.header["documents"] == 20
    assert (path.stat().st_size - 80) % 64 == 0 and not partial_path(path).exists()


def test_the_map_cannot_be_written_to_and_outlives_its_file_object(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    write_scores(prefix, "x", [scores()], {})
    values = ScoreFile(prefix, "x").values
    with pytest.raises(ValueError):
        values[0] = 1
    assert values.tolist() == scores().tolist()


def test_names_are_listed_and_those_that_are_no_file_name_are_refused(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    for name in ("rarity", "field-quality", "难度"):
        write_scores(prefix, name, [scores()], {})
    (tmp_path / "data.a.b.scores").touch()
    assert score_names(prefix) == ["field-quality", "rarity", "难度"]
    for name in ("", "a/b", "../x", "a.b", "-a", "a b", "x" * 101):
        with pytest.raises(DataError, match="cannot name scores"):
            score_path(prefix, name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused_with_its_document(bad: float, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    values = scores().astype(np.float64)
    values[150] = bad
    with pytest.raises(DataError, match="document 150 in x is"):
        write_scores(prefix, "x", [values[:100], values[100:]], {})
    assert list(tmp_path.glob("*.scores*")) == []


@pytest.mark.parametrize("count", [199, 201])
def test_scores_that_miss_documents_or_are_too_many_are_refused(count: int, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    with pytest.raises(DataError, match="200 documents"):
        write_scores(prefix, "x", [scores(count)], {})
    assert list(tmp_path.glob("*.scores*")) == []


def test_an_empty_dataset_has_no_scores(tmp_path: Path):
    write_indexed(tmp_path / "data", [], np.uint16)
    with pytest.raises(DataError, match="no documents to score"):
        write_scores(tmp_path / "data", "x", [], {})


def test_scores_of_other_data_are_refused(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    content = write_scores(prefix, "x", [scores()], {}).read_bytes()
    for other, what in (
        (make_dataset(tmp_path, "same-size", seed=1), "dataset"),
        (make_dataset(tmp_path, "short", count=150), "documents"),
    ):
        score_path(other, "x").write_bytes(content)
        with pytest.raises(DataError, match=f"made for other data: its {what} is"):
            ScoreFile(other, "x")
    score_path(prefix, "y").write_bytes(content)
    with pytest.raises(DataError, match="its metric is x"):
        ScoreFile(prefix, "y")
    with pytest.raises(DataError, match="there are no scores"):
        ScoreFile(prefix, "absent")


def test_a_header_that_speaks_of_nan_values_is_no_way_in(tmp_path: Path):
    """Checksums that hold do not make NaN a score."""
    prefix = make_dataset(tmp_path)
    values = scores()
    values[7] = np.nan
    with mock.patch.object(score_file, "_check_finite"):
        write_scores(prefix, "x", [values], {})
    with pytest.raises(DataError, match="score of document 7"):
        ScoreFile(prefix, "x")


def test_every_mutation_is_refused(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    path = write_scores(prefix, "x", [scores()], {"formula": "none", "numbers": [1, 2.5]})
    good, dataset, dice = path.read_bytes(), IndexedDataset(prefix), random.Random(0)
    beginnings = [good[:length] for length in range(0, len(good), 7)]
    for mutant in [*beginnings, *(damaged(dice, good) for _ in range(2000))]:
        if mutant == good:
            continue
        path.write_bytes(mutant)
        with pytest.raises(DataError, match=r"x\.scores"):
            ScoreFile(prefix, "x", dataset)
    path.write_bytes(good)
    assert len(ScoreFile(prefix, "x", dataset).values) == 200


def damaged(dice: random.Random, content: bytes) -> bytes:
    """One random damage: a bit, a byte, a span taken out, doubled, overwritten or moved, something at the end."""
    begin, end = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    place = dice.randrange(len(content))
    return dice.choice(
        [
            content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :],
            content[:place] + dice.randbytes(1) + content[place + 1 :],
            content[:place] + dice.choice([b" ", b"\n", b"{", b"0", b"NaN"]) + content[place:],
            content[:begin] + content[end:],
            content[:end] + content[begin:],
            content[:begin] + dice.randbytes(end - begin) + content[end:],
            content[end:] + content[:end],
            content + dice.choice([b"\0", b"\0" * 4, b"\n"]),
        ]
    )


def target_of(prefix: str) -> ScoreTarget:
    return ScoreTarget.of(IndexedDataset(prefix), "x")


def test_a_killed_writer_is_continued_to_the_same_bytes(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    expected = write_scores(prefix, "x", [scores()], {"a": 1}).read_bytes()
    score_path(prefix, "x").unlink()
    writer = ScoreWriter(target_of(prefix), {"a": 1})
    writer.append(scores()[:80])
    writer.sync()
    progress = writer.progress
    writer.append(scores(seed=1)[80:120])  # after the last sync: not to be relied upon
    writer.keep()
    again = ScoreWriter(target_of(prefix), {"a": 1}, progress)
    again.append(scores()[80:])
    again.publish()
    assert score_path(prefix, "x").read_bytes() == expected


def test_a_changed_or_missing_partial_file_is_not_continued(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    writer = ScoreWriter(target_of(prefix), {})
    writer.append(scores()[:80])
    writer.keep()
    for progress in (ScoreProgress(80, "0" * 64), ScoreProgress(81, writer.progress.sha256)):
        with pytest.raises(DataError, match="not those that were written"):
            ScoreWriter(target_of(prefix), {}, progress)
    partial_path(score_path(prefix, "x")).unlink()
    with pytest.raises(DataError, match="to go on with"):
        ScoreWriter(target_of(prefix), {}, writer.progress)


def test_two_runs_cannot_write_the_same_scores(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    first = ScoreWriter(target_of(prefix), {})
    with pytest.raises(DataError, match="another run is writing"):
        ScoreWriter(target_of(prefix), {})
    first.discard()
    assert list(tmp_path.glob("*.scores*")) == []


def test_a_folder_that_is_missing_is_told(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    target = ScoreTarget(str(tmp_path / "absent" / "data"), "x", target_of(prefix).dataset, 200)
    with pytest.raises(DataError, match="cannot be written"):
        ScoreWriter(target, {})
