"""The bytes of a block to records. Runs in worker processes; a block without a broken record takes one tight loop."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from megatron_ext.data.records import RecordError, kind_of, why_not_json, why_not_utf8

Record = dict[str, Any] | str | RecordError
JSON_SPACE = b" \t\r\n"
"""What may stand around a JSON value."""


def split_lines(payload: bytes) -> list[bytes]:
    """Lines without their LF; a CR before it stays (JSON allows it). No other character ends a line."""
    lines = payload.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def parse_lines(lines: Sequence[bytes]) -> list[Record]:
    """The object of each text, or the error that says why there is none."""
    try:
        return _only_objects([orjson.loads(line) for line in lines])
    except orjson.JSONDecodeError:
        return _only_objects([_value_or_error(line) for line in lines])


def decode_lines(payload: bytes) -> list[Record]:
    """The text of each line, without its LF or CR LF."""
    try:
        lines = payload.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return decode_texts([line.removesuffix(b"\r") for line in split_lines(payload)])
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def decode_texts(texts: Sequence[bytes]) -> list[Record]:
    """Each text decoded, or the error that says which byte is not UTF-8."""
    records: list[Record] = []
    for text in texts:
        try:
            records.append(text.decode("utf-8"))
        except UnicodeDecodeError as error:
            records.append(why_not_utf8(error))
    return records


def element_bounds(ends: bytes) -> list[tuple[int, int]]:
    """Begin and end of each element in its block; one byte, the comma, stands between two."""
    stops = np.frombuffer(ends, np.int64).tolist()
    return list(zip([0, *(stop + 1 for stop in stops)], stops, strict=False))


def parse_elements(payload: bytes, ends: bytes) -> list[Record]:
    """The object of each element of an array.

    A block is what stands between two commas of the outermost level, so if brackets around it make valid JSON, they
    make exactly the block's elements; otherwise each element is looked at by itself.
    """
    bounds = element_bounds(ends)
    try:
        records = orjson.loads(b"[%b]" % payload)
    except orjson.JSONDecodeError:
        records = []
    if len(records) == len(bounds):
        return _only_objects(records)
    elements = [payload[begin:end] for begin, end in bounds]
    found = parse_lines(elements)
    for index, element in enumerate(elements):
        if not element.strip(JSON_SPACE):
            found[index] = RecordError("broken JSON", "nothing stands before the comma or the end of the array")
    return found


def table_rows(payload: bytes) -> list[Record]:
    """The rows of an Arrow stream as dicts; a row whose text is not UTF-8 gives an error."""
    table = _table(payload)
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        return [_row_or_error(table.slice(index, 1)) for index in range(table.num_rows)]


def row_as_json(payload: bytes, index: int) -> bytes:
    """One row of an Arrow stream as JSON; bytes in base64, and what JSON has no word for as text."""
    import pyarrow

    table = _table(payload).slice(index, 1)
    try:
        row = table.to_pylist()[0]
    except UnicodeDecodeError:
        binary = [pyarrow.binary() if pyarrow.types.is_string(kind) else kind for kind in table.schema.types]
        schema = pyarrow.schema(list(zip(table.schema.names, binary, strict=True)))
        row = table.cast(schema).to_pylist()[0]
    return orjson.dumps(row, default=_as_text, option=orjson.OPT_NON_STR_KEYS)


def _value_or_error(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return why_not_json(text.removesuffix(b"\r"), error)


def _only_objects(records: list[Any]) -> list[Record]:
    if not set(map(type, records)) <= {dict, RecordError}:
        for index, record in enumerate(records):
            if not isinstance(record, dict | RecordError):
                records[index] = RecordError("not an object", f"the record is {kind_of(record)}")
    return records


def _table(payload: bytes) -> Any:
    import pyarrow

    with pyarrow.ipc.open_stream(payload) as stream:
        return stream.read_all()


def _row_or_error(table: Any) -> Record:
    try:
        return table.to_pylist()[0]
    except UnicodeDecodeError as error:
        return why_not_utf8(error)


def _as_text(value: object) -> str:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else str(value)
