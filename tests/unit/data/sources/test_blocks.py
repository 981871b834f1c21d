"""A block tells its records and their bytes alike, and survives the way to another process."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from megatron_ext.data.sources.blocks import LONG_RECORD_HEAD, Position, RecordBlock, long_record
from megatron_ext.data.sources.pieces import ReadOptions, ReadProgress
from megatron_ext.data.sources.read import read_blocks
from tests.unit.data.sources.written import parquet_bytes, write_input

CONTENTS = {
    "jsonl": b'{"a": 1}\r\n{\n',
    "text": b"one\r\n\xff\n",
    "json": b'[ {"a": 1} , {"b" 2}\n]',
    "parquet": parquet_bytes([{"a": 1}, {"a": 2}]),
    "text-file": b"one\ntwo\n",
    "too long": b"x" * 9000,
}
RAW = {
    "jsonl": [b'{"a": 1}', b"{"],
    "text": [b"one", b"\xff"],
    "json": [b'{"a": 1}', b'{"b" 2}'],
    "parquet": [b'{"a":1}', b'{"a":2}'],
    "text-file": [b"one\ntwo\n"],
    "too long": [b"x" * 4096 + b" ... [the record has 9000 bytes; this is its beginning]"],
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_records_and_their_bytes_go_together_in_another_process_too(tmp_path: Path, kind: str):
    file = write_input(tmp_path, "x", "text" if kind == "too long" else kind, CONTENTS[kind])
    [block] = read_blocks([file], ReadProgress(), options=ReadOptions(8000))
    block = pickle.loads(pickle.dumps(block))
    assert (block.kind, block.first_record, block.num_records) == (kind, 1, len(RAW[kind]))
    assert [block.raw(index) for index in range(block.num_records)] == RAW[kind]
    assert len(block.parsed()) == block.num_records


def test_a_block_is_little_more_than_its_bytes():
    block = RecordBlock(3, 7, b"x" * 1000, "jsonl", 10, Position(3, 5000, 16))
    assert len(pickle.dumps(block, 5)) < 1400


def test_of_a_long_record_the_beginning_and_the_length_are_kept():
    payload, detail = long_record(b"y" * 10_000, 12_345, 100)
    assert payload.startswith(b"y" * LONG_RECORD_HEAD + b" ... [the record has 12345 bytes")
    assert detail == "12345 bytes, where at most 100 are read"
