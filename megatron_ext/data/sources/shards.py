"""Shard I of N: the part of the inputs that one of N independent runs reads; together they read everything once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.errors import DataError

_SEARCH_BYTES = 1 << 20


@dataclass(frozen=True)
class Shard:
    """Number `index` (from 0) of `count` shards."""

    index: int
    count: int


@dataclass(frozen=True)
class FilePart:
    """What is read of one file.

    Attributes:
        file_index: position of the file in the list of inputs.
        start: offset of the first byte, a line start.
        end: offset to stop at, a line start; None for the end of the file.
        size_bytes: bytes on disk; None for a pipe.
    """

    file_index: int
    start: int
    end: int | None
    size_bytes: int | None


def parse_shard(text: str) -> Shard:
    """The shard of `--shard I/N`, with I from 0 to N - 1.

    Raises:
        DataError: it is none.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise DataError(f"--shard {text} is not possible", "It is I/N with I from 0 to N - 1", "Give --shard 0/1 or so")
    return Shard(int(match[1]), int(match[2]))


def file_parts(files: Sequence[InputFile], shard: Shard | None = None) -> list[FilePart]:
    """The parts of the files that a shard reads, in order; without a shard, all files whole.

    All bytes on disk, laid end to end, are divided evenly. A line of a plain JSON-lines or text file belongs to the
    shard in whose range its first byte lies, and so does every other file as a whole. What a shard reads depends on
    nothing but the files and (index, count), so the shards' records in order are those of one run.

    Raises:
        DataError: a shard of a pipe or of standard input is asked for.
    """
    sizes = [file.size_bytes for file in files]
    if shard is None:
        return [FilePart(index, 0, None, size) for index, size in enumerate(sizes)]
    total = sum(_known(file, size) for file, size in zip(files, sizes, strict=True))
    begin, end = (total * number // shard.count for number in (shard.index, shard.index + 1))
    is_last = shard.index == shard.count - 1
    parts = []
    base = 0
    for index, (file, size) in enumerate(zip(files, sizes, strict=True)):
        size = size or 0
        if file.format in ("jsonl", "text") and not file.compression:
            first, last = (line_start(file, min(max(place - base, 0), size)) for place in (begin, end))
            if first < last:
                parts.append(FilePart(index, first, None if last == size else last, last - first))
        elif begin <= base < end or (is_last and base >= end):
            parts.append(FilePart(index, 0, None, size))
        base += size
    return parts


def parts_bytes(parts: Sequence[FilePart]) -> int | None:
    """Bytes on disk of all parts; None when a pipe is among them."""
    sizes = [part.size_bytes for part in parts]
    return None if None in sizes else sum(size or 0 for size in sizes)


def line_start(file: InputFile, place: int) -> int:
    """Offset of the first line of a plain file that begins at `place` or behind it; the end of the file for none."""
    if place == 0 or file.path is None:
        return 0
    with file.path.open("rb") as stream:
        offset = stream.seek(place - 1)
        while piece := stream.read(_SEARCH_BYTES):
            found = piece.find(b"\n")
            if found >= 0:
                return offset + found + 1
            offset += len(piece)
    return offset


def _known(file: InputFile, size: int | None) -> int:
    if size is None:
        raise DataError(
            f"{file.name} cannot be read in shards", "Its size is not known before its end", "Save it to a file first"
        )
    return size
