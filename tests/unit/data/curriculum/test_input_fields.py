"""Fields of the rows land on the documents that came of these rows, or on none."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum import input_fields
from megatron_ext.data.curriculum.input_fields import FieldPass, field_score_name, number_in
from megatron_ext.data.curriculum.score_file import ScoreFile
from megatron_ext.data.curriculum.score_run import RunOptions, run_pass
from megatron_ext.data.sources.inputs import expand_inputs
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import Shard
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.byte_tokenizer import ByteTokenizer, use_tokenizer
from tests.unit.data.curriculum.scored import dies_by_sigkill, kill_after, preprocess_bytes


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    use_tokenizer(monkeypatch, ByteTokenizer())
    monkeypatch.setattr(input_fields, "read_blocks", partial(read_blocks, block_bytes=200))


def rows_of(count: int = 60) -> list[str]:
    """Lines: every seventh is broken, every fifth has no text, the others carry their own number."""
    lines = []
    for i in range(count):
        row = {"text": "" if i % 5 == 0 else f"text {i}", "quality": i / 8, "meta": {"rank": -i}}
        lines.append("{broken" if i % 7 == 0 else json.dumps(row))
    return lines


def written(folder: Path, lines: list[str], name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


EXPECTED = [i for i in range(60) if i % 5 and i % 7]


def field_pass(prefix: str, source: Path, fields=("quality",), workers: int = 1) -> FieldPass:
    return FieldPass(IndexedDataset(prefix), fields, expand_inputs([str(source)]), ByteTokenizer(), workers)


def numbers(made: FieldPass, state: dict | None = None) -> np.ndarray:
    return np.concatenate([result.scores for result in made.results(state)], axis=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_each_document_gets_the_number_of_its_row(workers: int, tmp_path: Path):
    source = written(tmp_path, rows_of())
    prefix = preprocess_bytes(source, tmp_path / "out")
    found = numbers(field_pass(prefix, source, ("quality", "meta.rank"), workers))
    assert found.tolist() == [[i / 8 for i in EXPECTED], [-i for i in EXPECTED]]


def test_the_pass_goes_on_from_any_state(tmp_path: Path):
    source = written(tmp_path, rows_of())
    made = field_pass(preprocess_bytes(source, tmp_path / "out"), source)
    results = list(made.results(None))
    assert len(results) > 5
    for result in results:
        state = json.loads(json.dumps(result.state))
        rest = [score for later in made.results(state) for score in later.scores[0]]
        assert rest == [i / 8 for i in EXPECTED[state["documents"] :]]


def test_a_killed_run_is_resumed(tmp_path: Path, monkeypatch):
    source = written(tmp_path, rows_of())
    dataset = IndexedDataset(preprocess_bytes(source, tmp_path / "out"))
    made, options = field_pass(dataset.prefix, source, ("meta.rank",)), RunOptions(resume=True, commit_seconds=0)
    with monkeypatch.context() as context:
        kill_after(context, 3)
        assert dies_by_sigkill(lambda: run_pass(dataset, made, options))
    run_pass(dataset, made, options)
    assert ScoreFile(dataset.prefix, "field-meta-rank").values.tolist() == [-i for i in EXPECTED]


def test_shards_read_their_own_part(tmp_path: Path):
    source = written(tmp_path, rows_of())
    found = []
    for index in range(3):
        preprocess_bytes(source, tmp_path / "out", shard=Shard(index, 3))
        found += numbers(field_pass(f"{tmp_path}/out.shard-{index}-of-3_text_document", source))[0].tolist()
    assert found == [i / 8 for i in EXPECTED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "the input gives"),
        (lambda lines: [*lines, '{"text": "more", "quality": 1}'], "did not make documents"),
        (lambda lines: [*lines, "{broken"], "the input gives 61 records"),
        (lambda lines: [*lines[:30], *lines[32:34], *lines[30:32], *lines[34:]], "did not make documents"),
        (lambda lines: [line.replace("text 32", "text 99") for line in lines], "did not make documents"),
        (lambda lines: [line.replace('"quality": 4.0', '"other": 4.0') for line in lines], "record 33 of .* no field"),
        (lambda lines: [line.replace('"quality": 4.0', '"quality": "4"') for line in lines], "instead of a number"),
        (lambda lines: [line.replace('"quality": 4.0', '"quality": null') for line in lines], "holds null"),
    ],
)
def test_rows_that_did_not_make_the_dataset_are_refused(change, message: str, tmp_path: Path):
    prefix = preprocess_bytes(written(tmp_path, rows_of()), tmp_path / "out")
    with pytest.raises(DataError, match=message):
        numbers(field_pass(prefix, written(tmp_path, change(rows_of()), "b.jsonl")))


def test_a_dataset_without_manifest_has_no_rows(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1]], np.uint16)
    with pytest.raises(DataError, match="no manifest"):
        field_pass(str(tmp_path / "data"), written(tmp_path, rows_of()))


def test_numbers_and_names_of_fields():
    assert number_in({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert number_in({"a": {"b": 2}}, "a.b") == 2.0
    assert field_score_name("a.b") == "field-a-b"
    for record in ({"a": True}, {"a": 10**400}, {"a": float("nan")}, {"a": [1]}, {}, "text"):
        with pytest.raises(DataError, match="'a'"):
            number_in(record, "a")
