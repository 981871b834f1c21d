"""A column holds what a row form needs, or the complaint says which column, where, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows import fields

RECORD = {"text": "a", "nothing": None, "list": ["a"], "empty": [], "object": {"k": 1}, "number": 3, "flag": True}


def test_what_is_there_is_read():
    assert fields.text_at(RECORD, "text") == "a"
    assert fields.list_at(RECORD, "list") == ["a"]
    assert fields.object_at(RECORD, "object") == {"k": 1}
    assert fields.require_object(RECORD) is RECORD


@pytest.mark.parametrize("column", ["", "nothing", "absent"])
def test_an_optional_text_may_be_missing(column: str):
    assert fields.optional_text_at(RECORD, column) == ""


COMPLAINTS = [
    (lambda: fields.text_at(RECORD, "absent"), "missing key", "no key 'absent'"),
    (lambda: fields.text_at(RECORD, "absent", "message 3"), "missing key", "no key 'absent' of message 3"),
    (lambda: fields.text_at(RECORD, "nothing"), "wrong type", "key 'nothing' holds null instead of text"),
    (lambda: fields.text_at(RECORD, "number"), "wrong type", "key 'number' holds a number instead of text"),
    (lambda: fields.optional_text_at(RECORD, "flag"), "wrong type", "key 'flag' holds true or false instead of text"),
    (lambda: fields.list_at(RECORD, "text"), "wrong type", "key 'text' holds text instead of a list"),
    (lambda: fields.list_at(RECORD, "absent"), "missing key", "no key 'absent'"),
    (lambda: fields.list_at(RECORD, "empty"), "bad conversation", "key 'empty' holds an empty list"),
    (lambda: fields.object_at(RECORD, "list", "turn 1"), "wrong type", "of turn 1 holds a list instead of an object"),
    (lambda: fields.require_object("line"), "not an object", "needs named fields"),
]


@pytest.mark.parametrize(("read", "reason", "detail"), COMPLAINTS, ids=[detail for *_, detail in COMPLAINTS])
def test_what_is_not_there_is_told(read: Any, reason: str, detail: str):
    with pytest.raises(RecordError) as caught:
        read()
    assert caught.value.reason == reason
    assert detail in caught.value.detail
