"""Input files written for a test, and everything that reading them gives."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

from megatron_ext.data.records import RecordError
from megatron_ext.data.sources.blocks import BLOCK_BYTES, RecordBlock
from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks

MAGIC = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # a plain file that begins so is refused
SUFFIXES = {"jsonl": ".jsonl", "json": ".json", "parquet": ".parquet", "text": ".txt", "text-file": ".txt"}


def packed(content: bytes, compression: str) -> bytes:
    """Content in two gzip members or zstd frames, or as it is."""
    halves = content[: len(content) // 2], content[len(content) // 2 :]
    if compression == "gz":
        return b"".join(gzip.compress(half, 1) for half in halves)
    if compression == "zst":
        return b"".join(map(zstandard.ZstdCompressor(write_checksum=True).compress, halves))
    return content


def write_input(folder: Path, stem: str, kind: str, content: bytes, compression: str = "") -> InputFile:
    path = folder / f"{stem}{SUFFIXES[kind]}{'.' if compression else ''}{compression}"
    path.write_bytes(packed(content, compression))
    return InputFile(path, kind, compression)


def parquet_bytes(rows: Sequence[dict], row_group_size: int = 1000) -> bytes:
    """A parquet file of the rows; of no rows, with a text column."""
    table = pyarrow.Table.from_pylist(rows) if rows else pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink, row_group_size=row_group_size)
    return sink.getvalue().to_pybytes()


def told(blocks: Iterable[RecordBlock]) -> Iterator[tuple[int, int, object]]:
    """(file, number, record) of every record, an error by its reason; checks each block against itself."""
    for block in blocks:
        records = block.parsed()
        assert len(records) == block.num_records > 0
        assert block.after.record == block.first_record - 1 + block.num_records
        for place, record in enumerate(records):
            value = record.reason if isinstance(record, RecordError) else record
            yield block.file_index, block.first_record + place, value


def read_all(files: Sequence[InputFile], block_bytes: int = BLOCK_BYTES, **settings: object) -> list:
    return list(told(read_blocks(files, ReadProgress(), block_bytes=block_bytes, **settings)))


def values(files: Sequence[InputFile], block_bytes: int = BLOCK_BYTES, **settings: object) -> list:
    return [value for _, _, value in read_all(files, block_bytes, **settings)]


def raws(files: Sequence[InputFile], block_bytes: int = BLOCK_BYTES, **settings: object) -> list[bytes]:
    blocks = read_blocks(files, ReadProgress(), block_bytes=block_bytes, **settings)
    return [block.raw(index) for block in blocks for index in range(block.num_records)]
