"""One line of JSON to the texts of its keys, or to the reason why not."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import orjson


@dataclass(frozen=True)
class BadRecord:
    """A line that gives no document.

    Attributes:
        file_index: position of the file in the list of inputs.
        line: line number, counted from 1.
        reason: one of the few words of REASONS, for counting.
        detail: what exactly is wrong.
        raw: the line as it stands in the file.
    """

    file_index: int
    line: int
    reason: str
    detail: str
    raw: bytes

    def to_json(self, file: str) -> bytes:
        """One line of the quarantine file, line end included; the bytes of the record in base64."""
        entry = {
            "file": file,
            "line": self.line,
            "reason": self.reason,
            "detail": self.detail,
            "bytes_base64": base64.b64encode(self.raw).decode("ascii"),
        }
        return json.dumps(entry, ensure_ascii=True).encode("ascii") + b"\n"


REASONS = (
    "blank line",
    "invalid UTF-8",
    "lone surrogate",
    "broken JSON",
    "not an object",
    "missing key",
    "wrong type",
    "not tokenizable",
)


class RecordError(Exception):
    """Why a line gives no document: (reason, detail)."""

    @property
    def reason(self) -> str:
        """One of REASONS."""
        return self.args[0]

    @property
    def detail(self) -> str:
        """What exactly is wrong."""
        return self.args[1]


def parse_record(line: bytes, keys: Sequence[str]) -> list[str]:
    """The text of each key of one JSON object.

    Raises:
        RecordError: the line is none, or one of the keys has no text.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _why_not_json(line, error) from None
    if not isinstance(record, dict):
        raise RecordError("not an object", f"the line holds {_kind(record)}")
    texts = []
    for key in keys:
        if key not in record:
            raise RecordError("missing key", f"no key {key!r}")
        if not isinstance(record[key], str):
            raise RecordError("wrong type", f"key {key!r} holds {_kind(record[key])} instead of text")
        texts.append(record[key])
    return texts


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> RecordError:
    if not line.strip():
        return RecordError("blank line", "nothing but white space" if line else "nothing")
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as unicode_error:
        return RecordError("invalid UTF-8", f"byte {unicode_error.start + 1} of the line ({unicode_error.reason})")
    if "surrogate" in str(error):
        return RecordError("lone surrogate", str(error))
    return RecordError("broken JSON", str(error))


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
