"""A file named .json: an array of records, or JSON lines, or one object; its beginning tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import chain

from megatron_ext.data.sources.arrays import ArrayCutter, check_end
from megatron_ext.data.sources.blocks import Position, RecordBlock
from megatron_ext.data.sources.lines import BOM, LineCutter
from megatron_ext.data.sources.parsing import JSON_SPACE
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob, ReadProgress, text_pieces
from megatron_ext.data.sources.whole_file import whole_block

_BEGIN_BYTES = 1 << 16


def json_blocks(job: FileJob) -> Iterator[RecordBlock]:
    """The elements of an array, the lines of JSON lines, or the one object that the file is.

    Raises:
        DamagedFileError: the array is broken so that it cannot be read on.
    """
    if job.start.offset:
        anew = dataclasses.replace(job, start=Position(job.start.file_index), progress=ReadProgress())
        begin, rest = _beginning(text_pieces(anew))[0], text_pieces(job)
    else:
        begin, rest = _beginning(text_pieces(job))
    text = begin.removeprefix(BOM).lstrip(JSON_SPACE)
    if text.startswith(b"["):
        yield from _elements(job, begin, len(begin) - len(text) + 1, rest)
        return
    pieces: Iterable[bytes] = rest if job.start.offset else chain([begin], rest)
    if not is_one_object(text):
        yield from LineCutter(job, "jsonl").blocks(pieces)
    elif job.start.offset == 0:
        yield whole_block(job, "json", pieces)
    else:
        check_end(pieces, job.start.offset)


def is_one_object(text: bytes) -> bool:
    """Whether a text that begins so is one object spread over several lines, and not lines of one object each."""
    first, line_end, rest = text.partition(b"\n")
    is_whole = first.rstrip(JSON_SPACE).endswith(b"}")
    return text.startswith(b"{") and bool(line_end) and not is_whole and not rest.lstrip(JSON_SPACE).startswith(b"{")


def _beginning(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    begin = b""
    while len(begin) < _BEGIN_BYTES and (piece := next(pieces, b"")):
        begin += piece
    return begin, pieces


def _elements(job: FileJob, begin: bytes, opened: int, rest: Iterator[bytes]) -> Iterator[RecordBlock]:
    if not job.start.offset:
        yield from ArrayCutter(job, opened).blocks(_not_empty(begin[opened:], rest))
        return
    origin = job.start.offset + 1
    piece = next(rest, b"")
    if piece.startswith(b","):
        yield from ArrayCutter(job, origin).blocks(_not_empty(piece[1:], rest))
    elif piece.startswith(b"]"):
        check_end(chain([piece[1:]], rest), origin)
    else:
        raise DamagedFileError(f"no element ends at byte {job.start.offset}, where reading stopped before")


def _not_empty(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    return chain([first], rest) if first else rest
