"""All inputs to blocks of records, in order: from the beginning, from a position on, or one shard of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from megatron_ext.data.sources.blocks import BLOCK_BYTES, Position, RecordBlock
from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.json_file import json_blocks
from megatron_ext.data.sources.lines import LineCutter
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob, ReadOptions, ReadProgress, text_pieces
from megatron_ext.data.sources.shards import FilePart, Shard, file_parts
from megatron_ext.data.sources.tables import table_blocks
from megatron_ext.data.sources.whole_file import text_file_block
from megatron_ext.errors import DataError


def read_blocks(
    files: Sequence[InputFile],
    progress: ReadProgress,
    start: Position | None = None,
    shard: Shard | None = None,
    block_bytes: int = BLOCK_BYTES,
    options: ReadOptions = ReadOptions(),  # noqa: B008  (frozen)
) -> Iterator[RecordBlock]:
    """Blocks of at least one record and, unless a single record is longer, about `block_bytes`.

    Reading that starts at the `after` of any block gives exactly the records behind that block.

    Args:
        files: from `expand_inputs`.
        progress: updated while blocks are taken.
        start: where to go on, the `after` of a block of a run over the same files and shard.
        shard: read only this part; records are then counted from the part's first record in each file.
        block_bytes: about how many bytes a block has.
        options: what is seldom changed.

    Raises:
        DataError: at once, when a pipe would have to be read from its middle or in shards; while reading, when a file
            is damaged, ends too early, or cannot be read.
    """
    start = start or Position()
    if start.file_index < len(files) and start.offset and not files[start.file_index].is_regular:
        raise DataError(
            f"{files[start.file_index].name} cannot be read again from record {start.record + 1} on",
            "A pipe gives its bytes once",
            "Start the run anew, or save the input to a file first",
        )
    parts = file_parts(files, shard)
    for index in range(len(files)):
        progress.records.setdefault(index, 0)
    jobs = []
    for part in parts:
        if part.file_index < start.file_index:
            progress.raw_bytes += part.size_bytes or 0
        else:
            jobs.append(_job(files[part.file_index], part, start, progress))
    return _blocks([FileJob(*job, block_bytes, options) for job in jobs])


def _job(
    file: InputFile, part: FilePart, start: Position, progress: ReadProgress
) -> tuple[InputFile, Position, int | None, ReadProgress]:
    at = start if part.file_index == start.file_index else Position(part.file_index)
    if not file.compression and file.format not in ("parquet", "text-file"):
        progress.raw_bytes += max(0, at.offset - part.start)
    return file, Position(part.file_index, max(at.offset, part.start), at.record), part.end, progress


def _blocks(jobs: Sequence[FileJob]) -> Iterator[RecordBlock]:
    for job in jobs:
        index, records = job.start.file_index, job.progress.records
        records[index] = job.start.record
        try:
            for block in _READERS[job.file.format](job):
                records[index] += block.num_records
                yield block
        except DamagedFileError as error:
            raise DataError(
                f"{job.file.name} is damaged after record {records[index]} ({error})",
                "A file that cannot be read to its end would lose records without a trace",
                "Copy the file again, or repack what can be saved",
            ) from None
        except OSError as error:
            raise DataError(
                f"reading {job.file.name} failed after record {records[index]} ({error.strerror or error})",
                fix="Check the disk and run again",
            ) from None


def _lines(kind: str, job: FileJob) -> Iterator[RecordBlock]:
    return LineCutter(job, kind).blocks(text_pieces(job))


_READERS: dict[str, Callable[[FileJob], Iterator[RecordBlock]]] = {
    "jsonl": partial(_lines, "jsonl"),
    "text": partial(_lines, "text"),
    "json": json_blocks,
    "parquet": table_blocks,
    "text-file": text_file_block,
}
