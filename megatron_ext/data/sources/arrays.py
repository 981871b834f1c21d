"""A JSON array of any size: its elements are cut out while it streams by.

An element is what stands between two commas of the outermost level. An element that is broken so that it is not certain
where it ends is cut off before the next line that begins as its own does; where there is no such line, quotes and
brackets are followed as well as they can, and when that leads nowhere the file is refused.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np

from megatron_ext.data.sources.array_scan import ElementScanner, NextElement
from megatron_ext.data.sources.blocks import LONG_RECORD_HEAD, Position, RecordBlock, long_record
from megatron_ext.data.sources.parsing import JSON_SPACE
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob

_HEAD_BYTES = 1 << 16  # of an element, to see how it begins


class ArrayCutter:
    """Cuts the text of one array into blocks.

    Args:
        job: what to read.
        origin: offset in the file of the text that comes first, behind the opening bracket or a comma.
    """

    def __init__(self, job: FileJob, origin: int) -> None:
        self._limit, self._block_bytes = job.options.max_record_bytes, job.block_bytes
        self._file_index, self._record, self._origin = job.start.file_index, job.start.record, origin
        self._scanner = ElementScanner()
        self._held: list[bytes] = []  # the text from `_origin` on that is in no block yet
        self._num_held = 0

    def blocks(self, pieces: Iterator[bytes]) -> Iterator[RecordBlock]:
        """Blocks of at least one element.

        Raises:
            DamagedFileError: the array does not end, or more follows behind its end, or an element is broken so that
                its end cannot be found.
        """
        while not self._scanner.closed:
            piece = next(pieces, b"")
            ends, broken = self._scan(piece)
            self._held.append(piece)
            self._num_held += len(piece)
            if ends:
                yield from self._take(ends)
            if broken or not piece:
                pieces = yield from self._mended(pieces)
            elif self._num_held > self._limit and not self._scanner.closed:
                pieces = yield from self._skipped(pieces)
        check_end(chain(self._held, pieces), self._origin)

    def _scan(self, piece: bytes) -> tuple[list[int], bool]:
        """The ends of elements as offsets from `_origin`, and whether the scan stopped at a broken element."""
        ends: list[int] = []
        asked = False  # whether the habit of the element's writer is known to tell nothing
        for place, is_end in self._scanner.marks(piece):
            if is_end:
                ends.append(self._num_held + place)
                asked = False
            elif not asked:
                begin = ends[-1] + 1 - self._num_held if ends else 0
                head = b"".join([*(() if ends else self._held), piece[begin : begin + _HEAD_BYTES]])[:_HEAD_BYTES]
                if NextElement(head).knows:
                    return ends, True
                asked = True
        return ends, False

    def _take(self, ends: Sequence[int]) -> Iterator[RecordBlock]:
        content = b"".join(self._held)
        bounds = list(zip([0, *(end + 1 for end in ends)], ends, strict=False))
        is_empty_array = self._scanner.closed and self._record == 0 and len(ends) == 1
        if not (is_empty_array and not content[: ends[0]].strip(JSON_SPACE)):
            yield from self._elements(content, bounds)
        self._move_on(content[ends[-1] + 1 :], ends[-1] + 1)

    def _move_on(self, rest: bytes, num_bytes: int) -> None:
        self._held, self._num_held = [rest] if rest else [], len(rest)
        self._origin += num_bytes

    def _mended(self, pieces: Iterator[bytes]) -> Generator[RecordBlock, None, Iterator[bytes]]:
        """One block: the element at `_origin`, up to where the next one seems to begin; returns the text behind it."""
        text = b"".join(self._held)
        next_element = NextElement(text[:_HEAD_BYTES])
        parts, num_before, tail = [text], 0, text
        while (found := next_element.find(tail)) < 0:
            piece = next(pieces, b"")
            if not piece or not next_element.knows or num_before + len(tail) > self._limit:
                raise self._endless(at_end=not piece)
            parts.append(piece)
            num_before += max(0, len(tail) - next_element.overlap)
            tail = tail[-next_element.overlap :] + piece
        text, end = b"".join(parts), num_before + found
        if end > self._limit:
            raise self._endless(at_end=False)
        self._scanner = ElementScanner()
        self._scanner.closed = text[end : end + 1] == b"]"
        yield from self._elements(text, [(0, end)])
        self._move_on(b"", end + 1)
        rest, size = text[end + 1 :], self._block_bytes
        return chain((rest[begin : begin + size] for begin in range(0, len(rest), size)), pieces)

    def _skipped(self, pieces: Iterator[bytes]) -> Generator[RecordBlock, None, Iterator[bytes]]:
        """One block that stands for an element too long to be held; returns the text behind it."""
        head, length = b"".join(self._held).lstrip(JSON_SPACE)[:LONG_RECORD_HEAD], self._num_held
        for piece in pieces:
            for place, is_end in self._scanner.marks(piece):
                if is_end:
                    head += piece[:place] if len(head) < LONG_RECORD_HEAD else b""
                    yield self._long(head, 0, length + place)
                    self._move_on(b"", length + place + 1)
                    return chain([piece[place + 1 :]] if place + 1 < len(piece) else [], pieces)
            length += len(piece)
            head += piece if len(head) < LONG_RECORD_HEAD else b""
        raise self._endless(at_end=True)

    def _endless(self, at_end: bool) -> DamagedFileError:
        element = f"element {self._record + 1} of its array, which begins at byte {self._origin}"
        if at_end:
            return DamagedFileError(f"it ends within {element}: the end is missing, or a quote or bracket before it")
        return DamagedFileError(f"{element}, is broken, and where it ends cannot be told")

    def _elements(self, content: bytes, bounds: Sequence[tuple[int, int]]) -> Iterator[RecordBlock]:
        if len(content) <= self._limit:
            yield self._block(content, bounds)
            return
        first = 0
        for index, (begin, end) in enumerate(bounds):
            if end - begin > self._limit:
                if first < index:
                    yield self._block(content, bounds[first:index])
                yield self._long(content[begin:end].lstrip(JSON_SPACE), begin, end)
                first = index + 1
        if first < len(bounds):
            yield self._block(content, bounds[first:])

    def _block(self, content: bytes, bounds: Sequence[tuple[int, int]]) -> RecordBlock:
        begin, end = bounds[0][0], bounds[-1][1]
        ends = np.array([stop - begin for _, stop in bounds], np.int64).tobytes()
        first, self._record = self._record + 1, self._record + len(bounds)
        return RecordBlock(self._file_index, first, content[begin:end], "json", len(bounds), self._after(end), ends)

    def _long(self, head: bytes, begin: int, end: int) -> RecordBlock:
        payload, detail = long_record(head.lstrip(JSON_SPACE), end - begin, self._limit)
        self._record += 1
        return RecordBlock(self._file_index, self._record, payload, "too long", 1, self._after(end), detail=detail)

    def _after(self, end: int) -> Position:
        """The place of the comma or bracket behind an element, for that tells how to go on."""
        return Position(self._file_index, self._origin + end, self._record)


def check_end(pieces: Iterable[bytes], offset: int) -> None:
    """Only white space may follow the end of the array.

    Raises:
        DamagedFileError: something else does.
    """
    for piece in pieces:
        if rest := piece.lstrip(JSON_SPACE):
            raise DamagedFileError(f"more follows the end of its array, at byte {offset + len(piece) - len(rest)}")
        offset += len(piece)
