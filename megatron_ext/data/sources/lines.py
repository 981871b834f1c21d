"""JSON lines and plain text: pieces of a file to blocks of whole lines. The hot path."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

from megatron_ext.data.sources.blocks import LONG_RECORD_HEAD, Position, RecordBlock, long_record
from megatron_ext.data.sources.pieces import FileJob

BOM = b"\xef\xbb\xbf"


class LineCutter:
    """Cuts the text of one file into blocks; beside copying it, with one search and one count of line ends a piece.

    Args:
        job: what to read.
        kind: "jsonl" or "text".
    """

    def __init__(self, job: FileJob, kind: str) -> None:
        self._kind = kind
        self._limit = job.options.max_record_bytes
        self._file_index, self._offset, self._record = job.start.file_index, job.start.offset, job.start.record

    def blocks(self, pieces: Iterable[bytes]) -> Iterator[RecordBlock]:
        """Blocks of at least one line and, unless a single line is longer, about as long as the pieces.

        A UTF-8 byte order mark at the start of the file is dropped. Only a file's last line may lack its line end.
        """
        remaining = iter(pieces)
        held: list[bytes] = []  # pieces of a line that has not ended yet
        num_held = 0
        piece = next(remaining, b"")
        while piece:
            end = piece.rfind(b"\n") + 1
            if end:
                yield from self._cut(b"".join([*held, memoryview(piece)[:end]]))
                held, num_held = [piece[end:]], len(piece) - end
            else:
                held.append(piece)
                num_held += len(piece)
                if num_held > self._limit + len(BOM):
                    piece = yield from self._skip(b"".join(held), remaining)
                    held, num_held = [], 0
                    continue
            piece = next(remaining, b"")
        if num_held:
            yield from self._cut(b"".join(held))

    def _cut(self, content: bytes) -> Iterator[RecordBlock]:
        content = self._without_mark(content)
        if len(content) <= self._limit:
            yield from self._run(content)
            return
        begin = place = 0  # of the lines not yet given out, and of the line looked at
        while place < len(content):
            end = content.find(b"\n", place) + 1 or len(content) + 1
            if end - 1 - place > self._limit:
                yield from self._run(content[begin:place])
                yield self._long(content[place : end - 1], end - 1 - place, min(end, len(content)) - place)
                begin = end
            place = end
        yield from self._run(content[begin:])

    def _run(self, content: bytes) -> Iterator[RecordBlock]:
        if content:
            num_lines = content.count(b"\n") + (not content.endswith(b"\n"))
            yield self._block(self._kind, content, num_lines, len(content))

    def _skip(self, head: bytes, pieces: Iterator[bytes]) -> Generator[RecordBlock, None, bytes]:
        """One block that stands for a line too long to be held; returns the text behind the line."""
        head = self._without_mark(head)
        length, head = len(head), head[:LONG_RECORD_HEAD]
        for piece in pieces:
            end = piece.find(b"\n")
            if len(head) < LONG_RECORD_HEAD:
                head += piece[:end] if end >= 0 else piece
            if end >= 0:
                yield self._long(head, length + end, length + end + 1)
                return piece[end + 1 :] or next(pieces, b"")
            length += len(piece)
        yield self._long(head, length, length)
        return b""

    def _without_mark(self, content: bytes) -> bytes:
        if self._offset or not content.startswith(BOM):
            return content
        self._offset = len(BOM)
        return content[len(BOM) :]

    def _long(self, head: bytes, length: int, num_bytes: int) -> RecordBlock:
        payload, detail = long_record(head, length, self._limit)
        return self._block("too long", payload, 1, num_bytes, detail)

    def _block(self, kind: str, payload: bytes, num_records: int, num_bytes: int, detail: str = "") -> RecordBlock:
        first = self._record + 1
        self._offset += num_bytes
        self._record += num_records
        after = Position(self._file_index, self._offset, self._record)
        return RecordBlock(self._file_index, first, payload, kind, num_records, after, detail=detail)
