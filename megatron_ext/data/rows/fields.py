"""The columns of a record, read with a precise complaint when they do not hold what a row form needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.data.records import RecordError, kind_of

Record = Mapping[str, Any]


def require_object(record: Record | str) -> Record:
    """The record itself.

    Raises:
        RecordError: it is a plain text.
    """
    if isinstance(record, str):
        raise RecordError("not an object", "the record is a plain text; this row format needs named fields")
    return record


def text_at(record: Record, column: str, where: str = "") -> str:
    """The text in a column.

    Args:
        record: where to look.
        column: the column's name.
        where: what `record` is, for the complaint, when it is not the whole record.

    Raises:
        RecordError: the column is missing or holds something else.
    """
    value = record.get(column)
    if type(value) is str:
        return value
    raise missing_text(record, column, where)


def optional_text_at(record: Record, column: str) -> str:
    """The text in a column, "" when the column is missing, null, or has no name.

    Raises:
        RecordError: the column holds something else.
    """
    if not column or record.get(column) is None:
        return ""
    return text_at(record, column)


def list_at(record: Record, column: str) -> list[Any]:
    """The list in a column.

    Raises:
        RecordError: the column is missing, or holds something else or an empty list.
    """
    value = record.get(column)
    if type(value) is not list:
        raise _wrong(record, column, "", "a list")
    if not value:
        raise RecordError("bad conversation", f"key {column!r} holds an empty list")
    return value


def object_at(record: Record, column: str, where: str = "") -> Record:
    """The object in a column.

    Raises:
        RecordError: the column is missing or holds something else.
    """
    value = record.get(column)
    if type(value) is not dict:
        raise _wrong(record, column, where, "an object")
    return value


def missing_text(record: Record, column: str, where: str = "") -> RecordError:
    """Why a column has no text."""
    return _wrong(record, column, where, "text")


def _wrong(record: Record, column: str, where: str, wanted: str) -> RecordError:
    place = f" of {where}" if where else ""
    if column not in record:
        return RecordError("missing key", f"no key {column!r}{place}")
    return RecordError("wrong type", f"key {column!r}{place} holds {kind_of(record[column])} instead of {wanted}")
