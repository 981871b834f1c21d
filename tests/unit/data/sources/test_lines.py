"""Every line comes out once, in order, with its number, whatever the packing, the block size and the line ends."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.lines import LineCutter
from megatron_ext.data.sources.pieces import FileJob, ReadOptions, ReadProgress
from tests.unit.data.sources.written import MAGIC, InputFile, raws, read_all, told, values, write_input

BOM = b"\xef\xbb\xbf"
LIMIT = 10


def cut(pieces: list[bytes], kind: str = "text", limit: int = 1 << 30) -> list:
    job = FileJob(InputFile(Path("x"), kind), Position(), None, ReadProgress(), options=ReadOptions(limit))
    return list(LineCutter(job, kind).blocks(pieces))


def expected_lines(content: bytes) -> list[bytes]:
    lines = content.removeprefix(BOM).split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


@settings(deadline=None, max_examples=80)
@given(
    files=st.lists(st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b), max_size=8), max_size=3),
    compression=st.sampled_from(["", "gz", "zst"]),
    block_bytes=st.integers(1, 40),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
    mark=st.sampled_from([b"", BOM]),
)
def test_lines_come_out_once_in_order(files, compression, block_bytes, end, mark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    inputs, wanted = [], []
    for index, lines in enumerate(files):
        content = mark + (end or b"\n").join(lines) + (end if lines else b"")
        assume(compression or not content.startswith(MAGIC))
        wanted += expected_lines(content)
        inputs.append(write_input(folder, str(index), "text", content, compression))
    assert raws(inputs, block_bytes) == wanted
    numbers = [(file, number) for file, number, _ in read_all(inputs, block_bytes)]
    assert numbers == sorted(set(numbers))


@settings(deadline=None)
@given(
    content=st.lists(st.sampled_from([b"\n", b"\r\n", b"x", b"0123456", b"y" * 40, BOM])).map(b"".join),
    sizes=st.lists(st.integers(1, 30), min_size=1),
)
def test_longer_lines_than_allowed_are_told_and_nothing_else_is_lost(content: bytes, sizes: list[int]):
    pieces, place = [], 0
    while place < len(content):
        pieces.append(content[place : place + sizes[len(pieces) % len(sizes)]])
        place += len(pieces[-1])
    blocks = cut(pieces, limit=LIMIT)
    lines = content.removeprefix(BOM).split(b"\n")
    lines = lines if lines[-1] else lines[:-1]
    wanted = ["too long" if len(line) > LIMIT else line.removesuffix(b"\r").decode() for line in lines]
    assert [value for _, _, value in told(blocks)] == wanted
    assert not blocks or blocks[-1].after == Position(0, len(content), len(lines))
    for block in blocks:
        if block.kind == "too long":
            line = lines[block.first_record - 1]
            assert block.raw(0) == line[:4096] + b" ... [the record has %d bytes; this is its beginning]" % len(line)
            assert block.detail == f"{len(line)} bytes, where at most {LIMIT} are read"


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_a_line_may_be_exactly_as_long_as_allowed(mark: bytes, size: int):
    for length, wanted in ((LIMIT, "x" * LIMIT), (LIMIT + 1, "too long")):
        for end in (b"", b"\n"):
            content = mark + b"x" * length + end
            blocks = cut([content[begin : begin + size] for begin in range(0, len(content), size)], limit=LIMIT)
            assert [value for _, _, value in told(blocks)] == [wanted]


def test_a_line_of_a_gigabyte_takes_no_memory_and_the_next_ones_are_read():
    mebibyte = b"x" * (1 << 20)

    def pieces():
        yield b'{"text": "'
        for _ in range(1000):
            yield mebibyte
        yield b'"}\n{"text": "next"}\n'

    tracemalloc.start()
    blocks = cut(pieces(), "jsonl", limit=1 << 21)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [value for _, _, value in told(blocks)] == ["too long", {"text": "next"}]
    assert peak < 16 << 20
    assert blocks[0].detail.startswith("1048576012 bytes")


def test_only_line_feeds_end_lines(tmp_path: Path):
    file = write_input(tmp_path, "x", "text", "a\u2028b\x0bc\x0cd\x85e\rf\r\ng".encode())
    assert values([file]) == ["a\u2028b\x0bc\x0cd\x85e\rf", "g"]


@pytest.mark.parametrize("content", [b"", BOM])
def test_a_file_without_text_has_no_lines(tmp_path: Path, content: bytes):
    assert values([write_input(tmp_path, "x", "text", content)], 1) == []


def test_ten_million_one_character_lines_are_counted():
    content = b"x\n" * (1 << 18)
    blocks = cut([content] * 38)
    assert sum(block.num_records for block in blocks) == 38 << 18
    assert blocks[-1].after == Position(0, 38 << 19, 38 << 18)
