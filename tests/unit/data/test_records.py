"""A line gives texts, or one of a closed list of reasons; the quarantine keeps its bytes."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.records import REASONS, BadRecord, RecordError, kind_of, texts_of
from megatron_ext.data.rows.text_form import TextForm
from megatron_ext.data.sources.parsing import parse_lines

BAD_LINES = [
    (b"", "blank line"),
    (b" \t ", "blank line"),
    (b"{", "broken JSON"),
    (b'{"text": "a"', "broken JSON"),
    (b'{"text": "a"} x', "broken JSON"),
    (b'{"text": "a"}{"text": "b"}', "broken JSON"),
    (b"{'text': 'a'}", "broken JSON"),
    (b'{"text": NaN}', "broken JSON"),
    (b'{"n": 1e400, "text": "a"}', "broken JSON"),
    (b'{"text": "a\x00"}', "broken JSON"),
    (b'{"text": "\x01"}', "broken JSON"),
    (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "too deep"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"text": "\xc0\xaf"}', "invalid UTF-8"),
    (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"text": "\\udc00"}', "lone surrogate"),
    (b'{"text": "\\ud800 x"}', "lone surrogate"),
    (b"[1]", "not an object"),
    (b'"text"', "not an object"),
    (b"null", "not an object"),
    (b"1", "not an object"),
    (b"1" * 1000, "broken JSON"),
    (b'{"other": "a"}', "missing key"),
    (b"{}", "missing key"),
    (b'{"text": null}', "wrong type"),
    (b'{"text": 1}', "wrong type"),
    (b'{"text": true}', "wrong type"),
    (b'{"text": ["a"]}', "wrong type"),
    (b'{"text": {"a": "b"}}', "wrong type"),
]


def parse_record(line: bytes, keys: list[str]) -> list[str]:
    """The texts of one line, as preprocessing gets them."""
    (record,) = parse_lines([line])
    return TextForm(tuple(keys), None).texts(record)


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=lambda value: repr(value)[:40])
def test_every_class_of_bad_line_has_its_reason(line: bytes, reason: str):
    with pytest.raises(RecordError) as caught:
        parse_record(line, ["text"])
    assert caught.value.reason == reason
    assert reason in REASONS
    assert caught.value.detail


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "a", "text": "b"}', "b"),
        (b'{"text": "\\ud83d\\ude42"}', "🙂"),
        (b'{"text": "\\u0000"}', "\x00"),
        ('{"text": "\u2028\ufffe"}'.encode(), "\u2028\ufffe"),
        (b' {"text": ""} ', ""),
        (b'{"n": ' + b"9" * 60 + b', "text": "a"}', "a"),
    ],
)
def test_odd_but_valid_lines_give_their_text(line: bytes, text: str):
    assert parse_record(line, ["text"]) == [text]


@given(st.binary())
def test_any_bytes_give_texts_or_a_known_reason(line: bytes):
    try:
        texts = parse_record(line, ["text"])
    except RecordError as error:
        assert error.reason in REASONS
    else:
        assert len(texts) == 1


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text()), st.booleans())
def test_keys_come_out_in_the_order_asked_for(record: dict[str, str], ascii_only: bool):
    line = json.dumps(record, ensure_ascii=ascii_only).encode()
    keys = sorted(record, reverse=True)
    assert parse_record(line, keys) == [record[key] for key in keys]


def test_the_quarantine_keeps_place_reason_and_bytes():
    raw = b'{"text": "\xff\n'
    entry = json.loads(BadRecord(0, 7, "invalid UTF-8", "byte 11", raw).to_json("corpus.jsonl"))
    assert (entry["file"], entry["line"], entry["reason"]) == ("corpus.jsonl", 7, "invalid UTF-8")
    assert base64.b64decode(entry["bytes_base64"]) == raw


def test_the_texts_of_an_object_come_by_its_keys():
    assert texts_of({"a": "x", "b": "y"}, ["b", "a"]) == ["y", "x"]
    with pytest.raises(RecordError, match="no key 'c'"):
        texts_of({"a": "x"}, ["c"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), (True, "true or false"), (1.5, "a number"), (b"", "bytes"), ({1}, "a set"), ([], "a list")],
)
def test_values_are_called_by_their_json_names(value: object, kind: str):
    assert kind_of(value) == kind
