"""The records found are those whose text stands in the dataset, among empty and broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.data.curriculum.written_records import RecordFinder, row_settings
from megatron_ext.data.rows.settings import FimSettings, RowSettings
from megatron_ext.data.sources.inputs import expand_inputs
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.store.manifest import read_manifest
from megatron_ext.errors import DataError
from tests.unit.data.byte_tokenizer import ByteTokenizer, documents_of, use_tokenizer
from tests.unit.data.curriculum.scored import preprocess_bytes
from tests.unit.data.described import Record, write_run
from tests.unit.data.preprocessed import bytes_request, preprocess


def records_found(prefix: str, source: Path) -> tuple[list, int]:
    manifest = read_manifest(prefix)
    assert manifest is not None
    find, texts, tokens = RecordFinder(manifest, ByteTokenizer()), [], 0
    for block in read_blocks(expand_inputs([str(source)]), ReadProgress(), block_bytes=60):
        records = block.parsed()
        written = find(block, records)
        texts += [records[place] for place in written.places]
        tokens += written.num_tokens
    return texts, tokens


def test_empty_and_broken_records_are_left_out(tmp_path: Path, monkeypatch):
    use_tokenizer(monkeypatch, ByteTokenizer())
    lines = ["{", '{"text": ""}', "", '{"no": 1}'] + [json.dumps({"text": f"row {i}" * (i % 3)}) for i in range(30)]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    prefix = preprocess_bytes(source, tmp_path / "out", rows=RowSettings())
    texts, tokens = records_found(prefix, source)
    assert [record["text"] for record in texts] == documents_of(prefix)
    assert tokens == sum(map(len, documents_of(prefix)))


def test_each_key_has_its_own_empty_texts(tmp_path: Path, monkeypatch):
    use_tokenizer(monkeypatch, ByteTokenizer())
    source = tmp_path / "a.jsonl"
    rows = [{"a": "x", "b": ""}, {"a": "", "b": "y"}, {"a": "z", "b": "z"}, {"a": "only a"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    preprocess(bytes_request((source,), tmp_path / "out", rows=RowSettings(json_keys=("a", "b"))))
    assert records_found(f"{tmp_path}/out_a_document", source)[0] == [rows[0], rows[2]]
    assert records_found(f"{tmp_path}/out_b_document", source)[0] == [rows[1], rows[2]]


def test_settings_come_back_from_the_manifest(tmp_path: Path):
    rows = {"json_keys": ["a"], "fields": [["x", "y"]], "append_eod": True, "fim": {"rate": 0.5, "seed": 3}}
    manifest = read_manifest(write_run(tmp_path / "x", [Record("a", [1])], rows=rows))
    assert manifest is not None
    assert row_settings(manifest) == RowSettings(
        json_keys=("a",), fields=(("x", "y"),), append_eod=True, fim=FimSettings(rate=0.5, seed=3)
    )


def test_a_key_that_the_rows_do_not_make_is_refused(tmp_path: Path):
    manifest = read_manifest(write_run(tmp_path / "x", [Record("a", [1])], rows={"json_keys": ["a", "b"]}))
    assert manifest is not None
    with pytest.raises(DataError, match=r"key 'text' is none of its rows' keys a, b"):
        RecordFinder(manifest, ByteTokenizer())


def test_packed_documents_are_no_rows(tmp_path: Path):
    manifest = read_manifest(write_run(tmp_path / "x", [Record("a", [1])], rows={"packing": "overlap"}))
    assert manifest is not None
    with pytest.raises(DataError, match="no rows of an input: it was made with packing"):
        row_settings(manifest)
