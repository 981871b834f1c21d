"""The shards' records, one shard after the other, are those of one run: for any number of shards and any files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import FilePart, Shard, file_parts, line_start, parse_shard, parts_bytes
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import parquet_bytes, raws, read_all, write_input

LINES = st.lists(st.sampled_from([b"", b"x", b"\xef\xbb\xbf", b"long " * 12, b'{"a": 1}']), max_size=8)
CONTENTS = st.tuples(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans()).map(
    lambda drawn: drawn[1].join(drawn[0]) + (drawn[1] if drawn[2] else b"")
)
PLAIN = st.tuples(st.sampled_from(["jsonl", "text"]), st.just(""), CONTENTS)
WHOLE = st.tuples(st.sampled_from(["jsonl", "json", "text-file", "text"]), st.sampled_from(["gz", "zst"]), CONTENTS)
OTHERS = st.sampled_from(
    [
        ("json", "", b'[{"a": 1}, {"a": 2}]'),
        ("text-file", "", b"a\nb"),
        ("text-file", "", b""),
        ("parquet", "", parquet_bytes([{"a": 1}, {"a": 2}])),
    ]
)


@settings(deadline=None, max_examples=60)
@given(inputs=st.lists(PLAIN | WHOLE | OTHERS, max_size=4), count=st.integers(1, 9), block_bytes=st.integers(1, 99))
def test_the_shards_together_are_the_whole(inputs: list, count: int, block_bytes: int, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    files = [write_input(folder, str(index), *drawn_order(drawn)) for index, drawn in enumerate(inputs)]
    parts = [file_parts(files, Shard(index, count)) for index in range(count)]
    assert sum(parts_bytes(part) or 0 for part in parts) == sum(file.size_bytes or 0 for file in files)
    together = [raw for index in range(count) for raw in raws(files, block_bytes, shard=Shard(index, count))]
    assert together == raws(files, block_bytes)


def drawn_order(drawn: tuple[str, str, bytes]) -> tuple[str, bytes, str]:
    kind, compression, content = drawn
    return kind, content, compression


def test_a_boundary_exactly_at_a_line_start_begins_the_next_shard_there(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"abc\n" * 10)
    for count in (2, 5, 10):
        parts = [file_parts([file], Shard(index, count)) for index in range(count)]
        size = 40 // count
        assert [(part.start, part.end) for [part] in parts] == [
            (begin, begin + size if begin + size < 40 else None) for begin in range(0, 40, size)
        ]
    assert [len(file_parts([file], Shard(index, 40))) for index in range(8)] == [1, 0, 0, 0] * 2


def test_a_long_line_belongs_to_the_shard_of_its_first_byte(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", b"a\n" + b"b" * 1000 + b"\nc\n")
    assert [raws([file], shard=Shard(index, 4)) for index in range(4)] == [[b"a", b"b" * 1000], [], [], [b"c"]]


def test_records_are_counted_from_the_first_of_the_shard_in_each_file(tmp_path: Path):
    files = [write_input(tmp_path, name, "text", b"1\n2\n3\n") for name in "ab"]
    numbers = [[(file, number) for file, number, _ in read_all(files, shard=Shard(index, 4))] for index in range(4)]
    assert [number for shard in numbers for number in shard] == [(0, 1), (0, 2), (0, 1), (1, 1), (1, 2), (1, 1)]


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@given(content=CONTENTS, place=st.integers(0, 40))
@settings(deadline=None, max_examples=40)
def test_the_first_line_from_a_place_on(content: bytes, place: int, piece: int, tmp_path_factory):
    file = write_input(tmp_path_factory.mktemp("x"), "x", "text", content)
    starts = [0, *(index + 1 for index, byte in enumerate(content) if byte == 10)]
    place = min(place, len(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_ext.data.sources.shards._SEARCH_BYTES", piece)
        assert line_start(file, place) == min([start for start in starts if start >= place] or [len(content)])


def test_progress_of_a_shard_is_its_own_bytes(tmp_path: Path):
    files = [
        write_input(tmp_path, "a", "text", b"abc\n" * 1000),
        write_input(tmp_path, "b", "text", b"x\n" * 500, "gz"),
    ]
    for index in range(3):
        progress, shard = ReadProgress(), Shard(index, 3)
        for _ in read_blocks(files, progress, shard=shard):
            pass
        assert progress.raw_bytes == parts_bytes(file_parts(files, shard))
    assert parts_bytes([FilePart(0, 0, None, None)]) is None


def test_shards_of_a_pipe_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for file in (InputFile(tmp_path / "pipe", "text"), InputFile(None, "jsonl")):
        assert file_parts([file]) == [FilePart(0, 0, None, None)]
        with pytest.raises(DataError, match="in shards"):
            file_parts([file], Shard(0, 2))


def test_a_shard_is_parsed():
    assert parse_shard("0/1") == Shard(0, 1)
    assert parse_shard("15/16") == Shard(15, 16)
    for text in ("", "1", "1/1", "2/1", "-1/2", "0/0", "a/b", "1/2/3", "0 / 2", "1.0/2", "9" * 20 + "/1"):
        with pytest.raises(DataError, match="--shard"):
            parse_shard(text)
