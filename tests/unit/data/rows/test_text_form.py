"""Texts of one or several columns, or plain lines: the hot path and the one-by-one path agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.settings import FimSettings
from megatron_ext.data.rows.spans import EOS, Segment
from megatron_ext.data.rows.text_form import TextForm

ONE, TWO = TextForm(("text",), None), TextForm(("a", "b"), None)
BROKEN = RecordError("broken JSON", "what the parser said")


def test_records_and_plain_lines_give_their_text():
    assert ONE.columns([{"text": "x", "other": 1}, "line", {"text": ""}]) == ([["x", "line", ""]], [])
    assert TWO.columns([{"b": "2", "a": "1"}]) == ([["1"], ["2"]], [])


@pytest.mark.parametrize("form", [ONE, TWO])
def test_a_broken_record_keeps_its_reason(form: TextForm):
    assert form.columns([BROKEN])[1] == [(0, BROKEN)]


@pytest.mark.parametrize(
    ("form", "record", "reason", "detail"),
    [
        (ONE, {}, "missing key", "no key 'text'"),
        (ONE, {"text": None}, "wrong type", "key 'text' holds null instead of text"),
        (ONE, {"text": ["x"]}, "wrong type", "holds a list"),
        (TWO, {"a": "1"}, "missing key", "no key 'b'"),
        (TWO, {"a": "1", "b": 2}, "wrong type", "key 'b' holds a number"),
        (TWO, "line", "not an object", "cannot fill the keys a, b"),
    ],
)
def test_what_is_not_a_text_is_told(form: TextForm, record: Any, reason: str, detail: str):
    columns, ((place, error),) = form.columns([record])
    assert (columns, place) == ([[] for _ in form.keys], 0)
    assert error.reason == reason
    assert detail in error.detail


RECORDS = st.lists(
    st.text(max_size=3)
    | st.just(BROKEN)
    | st.dictionaries(st.sampled_from(["text", "b"]), st.none() | st.text(max_size=3))
)


@given(RECORDS)
def test_the_fast_loop_does_what_one_record_at_a_time_does(records: list[Any]):
    (column,), bad = ONE.columns(records)
    texts, places = [], []
    for place, record in enumerate(records):
        try:
            texts += ONE.texts(record)
        except RecordError:
            places.append(place)
    assert column == texts
    assert [place for place, _ in bad] == places


def test_segments_and_special_names():
    assert TWO.segments({"a": "1", "b": ""}) == [[Segment("1")], []]
    assert ONE.special_names == (EOS,)
    assert not ONE.has_mask
    fim = FimSettings(rate=1.0, prefix_token="<P>", middle_token="<M>", suffix_token="<S>")
    form = TextForm(("text",), fim)
    assert form.special_names == ("<P>", "<M>", "<S>", EOS)
    assert [s.text for s in form.segments({"text": "abc"})[0] if s.special] == ["<P>", "<S>", "<M>"]
