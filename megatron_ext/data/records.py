"""One record to the texts of its keys, or to the reason why not."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class BadRecord:
    """A record that gives no document.

    Attributes:
        file_index: position of the file in the list of inputs.
        line: number of the record in its file, counted from 1; of a file of lines, the line.
        reason: one of the few words of REASONS, for counting.
        detail: what exactly is wrong.
        raw: the record as it stands in the file.
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
    "too deep",
    "too long",
    "not an object",
    "missing key",
    "wrong type",
    "bad conversation",
    "nothing to learn",
    "not tokenizable",
)


class RecordError(Exception):
    """Why a record gives no document: (reason, detail)."""

    @property
    def reason(self) -> str:
        """One of REASONS."""
        return self.args[0]

    @property
    def detail(self) -> str:
        """What exactly is wrong."""
        return self.args[1]


def texts_of(record: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """The text of each key of an object.

    Raises:
        RecordError: one of the keys is missing or holds no text.
    """
    texts = []
    for key in keys:
        if key not in record:
            raise RecordError("missing key", f"no key {key!r}")
        if not isinstance(record[key], str):
            raise RecordError("wrong type", f"key {key!r} holds {kind_of(record[key])} instead of text")
        texts.append(record[key])
    return texts


def why_not_json(text: bytes, error: orjson.JSONDecodeError) -> RecordError:
    """What is wrong with a text that the JSON parser refused with `error`."""
    if not text.strip():
        return RecordError("blank line", "nothing but white space" if text else "nothing")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as unicode_error:
        return why_not_utf8(unicode_error)
    if "surrogate" in str(error):
        return RecordError("lone surrogate", str(error))
    if "depth limit" in str(error):
        return RecordError("too deep", "more than 1024 brackets inside each other")
    return RecordError("broken JSON", str(error))


def why_not_utf8(error: UnicodeDecodeError) -> RecordError:
    """Which byte of a text is not UTF-8."""
    return RecordError("invalid UTF-8", f"byte {error.start + 1} of the record ({error.reason})")


def kind_of(value: object) -> str:
    """What a JSON value is, in words with an article."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bytes: "bytes",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), f"a {type(value).__name__}")
