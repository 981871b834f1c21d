"""A file that is one record comes out whole, line ends and all, or is told to be too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.pieces import FileJob, ReadOptions, ReadProgress
from megatron_ext.data.sources.whole_file import text_file_block, whole_block
from tests.unit.data.sources.written import InputFile, told, write_input

BOM = b"\xef\xbb\xbf"


def job_for(file: InputFile, limit: int = 1 << 30, offset: int = 0) -> FileJob:
    return FileJob(file, Position(0, offset, offset), None, ReadProgress(), 3, ReadOptions(limit))


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_the_text_is_all_of_the_file(tmp_path: Path, compression: str, mark: bytes):
    for text in ("", "one\r\ntwo\n\n", "\x00\u2028"):
        job = job_for(write_input(tmp_path, "x", "text-file", mark + text.encode(), compression))
        blocks = list(text_file_block(job))
        assert list(told(blocks)) == [(0, 1, text)]
        assert blocks[0].after == Position(0, 1, 1)
        assert job.progress.raw_bytes == job.file.size_bytes


def test_a_file_that_was_read_before_gives_nothing(tmp_path: Path):
    job = job_for(write_input(tmp_path, "x", "text-file", b"text"), offset=1)
    assert list(text_file_block(job)) == []
    assert job.progress.raw_bytes == 4


def test_text_that_is_not_utf8_is_an_error(tmp_path: Path):
    file = write_input(tmp_path, "x", "text-file", b"a\xff")
    assert list(told(text_file_block(job_for(file)))) == [(0, 1, "invalid UTF-8")]


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("size", [10, 11, 5000, 100_000])
def test_of_a_longer_file_than_allowed_the_beginning_is_kept(tmp_path: Path, size: int, mark: bytes):
    content = mark + b"x" * size
    pieces = [content[begin : begin + 7] for begin in range(0, len(content), 7)]
    block = whole_block(job_for(InputFile(tmp_path, "json"), 10), "json", pieces)
    assert (block.kind == "too long") is (size > 10)
    assert block.after == Position(0, len(content), 1)
    if size > 10:
        assert block.raw(0) == b"x" * min(size, 4096) + b" ... [the record has %d bytes; this is its beginning]" % size
