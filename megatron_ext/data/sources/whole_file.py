"""A file that is one record: a text, or a single JSON object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from megatron_ext.data.sources.blocks import LONG_RECORD_HEAD, Position, RecordBlock, long_record
from megatron_ext.data.sources.lines import BOM
from megatron_ext.data.sources.pieces import FileJob, text_pieces


def text_file_block(job: FileJob) -> Iterator[RecordBlock]:
    """The whole file as one text, none when it was read before; a byte order mark at its start is dropped."""
    if job.start.offset:
        job.progress.raw_bytes += job.file.size_bytes or 0
        return
    yield whole_block(job, "text-file", text_pieces(job, 0), after_offset=1)


def whole_block(job: FileJob, kind: str, pieces: Iterable[bytes], after_offset: int | None = None) -> RecordBlock:
    """All pieces as one record; its end lies at `after_offset`, by default the number of bytes."""
    limit = job.options.max_record_bytes
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        if length <= max(limit, LONG_RECORD_HEAD) + len(BOM):
            held.append(piece)
        length += len(piece)
    content = b"".join(held)
    num_bytes = length
    if content.startswith(BOM):
        content, length = content[len(BOM) :], length - len(BOM)
    after = Position(job.start.file_index, num_bytes if after_offset is None else after_offset, 1)
    if length > limit:
        payload, detail = long_record(content, length, limit)
        return RecordBlock(job.start.file_index, 1, payload, "too long", 1, after, detail=detail)
    ends = np.array([length], np.int64).tobytes() if kind == "json" else b""
    return RecordBlock(job.start.file_index, 1, content, kind, 1, after, ends)
