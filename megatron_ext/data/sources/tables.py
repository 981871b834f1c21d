"""Parquet files: rows in batches, one row group after the other, each batch an Arrow stream for the worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megatron_ext.data.sources.blocks import Position, RecordBlock
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob, unpacked_file

_MAX_BATCH_ROWS = 8192
_BUFFER_BYTES = 1 << 20  # of a column that is read at a time


def table_blocks(job: FileJob) -> Iterator[RecordBlock]:
    """Blocks of rows, never across row groups; memory holds a batch of rows and a buffer for each column.

    Raises:
        DamagedFileError: it is no parquet file, it is damaged, or it has fewer rows than were read before.
        OSError: reading fails.
    """
    if job.file.is_regular and not job.file.compression and job.file.path is not None:
        yield from _blocks(job, job.file.path)
        return
    with unpacked_file(job) as stream:
        yield from _blocks(job, stream)


def _blocks(job: FileJob, source: Path | IO[bytes]) -> Iterator[RecordBlock]:
    import pyarrow
    from pyarrow import parquet

    errors = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
    place, size = job.start, 0 if job.file.compression else job.file.size_bytes or 0
    before = job.progress.raw_bytes
    try:
        with parquet.ParquetFile(
            source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        ) as file:
            num_rows = file.metadata.num_rows
            if place.offset > num_rows:
                raise DamagedFileError(f"it has {num_rows} rows, fewer than the {place.offset} read of it before")
            for batch in _batches(job, file):
                payload = _as_stream(batch)
                after = Position(place.file_index, place.offset + batch.num_rows, place.record + batch.num_rows)
                job.progress.text_bytes += len(payload)
                job.progress.raw_bytes = before + size * after.offset // num_rows
                yield RecordBlock(place.file_index, place.record + 1, payload, "parquet", batch.num_rows, after)
                place = after
    except errors as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DamagedFileError(" ".join(str(error).split())) from None
    job.progress.raw_bytes = before + size


def _batches(job: FileJob, file: Any) -> Iterator[Any]:
    columns = job.options.columns
    wanted = None if columns is None else [name for name in file.schema_arrow.names if name in columns]
    skip = job.start.offset
    for group in range(file.num_row_groups):
        facts = file.metadata.row_group(group)
        if skip >= facts.num_rows:
            skip -= facts.num_rows
            continue
        row_bytes = facts.total_byte_size // facts.num_rows
        batch_rows = min(max(job.block_bytes // (row_bytes + 1), 1), _MAX_BATCH_ROWS)
        for batch in file.iter_batches(batch_rows, row_groups=[group], columns=wanted, use_threads=False):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            yield batch.slice(skip)
            skip = 0


def _as_stream(batch: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
