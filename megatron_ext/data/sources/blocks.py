"""Consecutive records of one file: what the reading process hands to a worker, and the place to go on from."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.data.records import RecordError
from megatron_ext.data.sources import parsing

BLOCK_BYTES = 1 << 19
"""Usual size of a block: large enough that a block costs little beside its bytes, small enough for many in flight."""

LONG_RECORD_HEAD = 4096
"""Bytes that are kept of a record too long to be held."""


@dataclass(frozen=True)
class Position:
    """A place between two records, from which reading can go on.

    Attributes:
        file_index: position of the file in the list of inputs.
        offset: how much of that file lies before it: bytes after decompression, rows of a parquet file, 0 or 1 for a
            file that is one record.
        record: number of records of that file before it (of the shard, where only a shard is read).
    """

    file_index: int = 0
    offset: int = 0
    record: int = 0


@dataclass(frozen=True)
class RecordBlock:
    """Consecutive records of one file, not parsed yet.

    Attributes:
        file_index: position of the file in the list of inputs.
        first_record: number of the first record in its file, counted from 1.
        payload: the records as `kind` says.
        kind: "jsonl" or "text", whole lines with their line ends; "json", elements of an array with the commas between
            them; "parquet", a batch of rows as an Arrow stream; "text-file", the whole file; "too long", the beginning
            of a record that was skipped.
        num_records: number of records, at least 1.
        after: the place behind the last record.
        ends: kind "json": int64 end of each element in `payload`, as bytes.
        detail: kind "too long": how long it is.
    """

    file_index: int
    first_record: int
    payload: bytes
    kind: str
    num_records: int
    after: Position
    ends: bytes = b""
    detail: str = ""

    def parsed(self) -> list[parsing.Record]:
        """The records in order: a dict for JSON and parquet, the text itself for text, the error for a broken one."""
        if self.kind == "jsonl":
            return parsing.parse_lines(parsing.split_lines(self.payload))
        if self.kind == "text":
            return parsing.decode_lines(self.payload)
        if self.kind == "json":
            return parsing.parse_elements(self.payload, self.ends)
        if self.kind == "parquet":
            return parsing.table_rows(self.payload)
        if self.kind == "text-file":
            return parsing.decode_texts([self.payload])
        return [RecordError("too long", self.detail)]

    def raw(self, index: int) -> bytes:
        """One record as it stands in the input, without its line end; a parquet row as JSON."""
        if self.kind in ("jsonl", "text"):
            return parsing.split_lines(self.payload)[index].removesuffix(b"\r")
        if self.kind == "json":
            begin, end = parsing.element_bounds(self.ends)[index]
            return self.payload[begin:end].strip(parsing.JSON_SPACE)
        if self.kind == "parquet":
            return parsing.row_as_json(self.payload, index)
        return self.payload


def long_record(head: bytes, length: int, limit: int) -> tuple[bytes, str]:
    """What is kept of a record of `length` bytes, more than `limit`: its beginning with a note, and the detail."""
    note = b" ... [the record has %d bytes; this is its beginning]" % length
    return head[:LONG_RECORD_HEAD] + note, f"{length} bytes, where at most {limit} are read"
