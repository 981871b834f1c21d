"""The elements of an array are found as a JSON parser finds them, wherever the pieces of the text are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_ext.data.sources.array_scan import ElementScanner, NextElement

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('ab"\\{}[],:\n\u4e2d ', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\}]a', max_size=3), inner, max_size=3),
    max_leaves=8,
)


def pieces_of(text: bytes, size: int) -> list[bytes]:
    return [text[begin : begin + size] for begin in range(0, len(text), size)]


def marks_of(text: bytes, size: int) -> list[tuple[int, bool]]:
    """Marks as offsets in the whole text."""
    scanner = ElementScanner()
    return [
        (index * size + place, is_end)
        for index, piece in enumerate(pieces_of(text, size))
        for place, is_end in scanner.marks(piece)
    ]


@given(st.lists(JSON_VALUES, min_size=1, max_size=5), st.sampled_from([None, 0, 2]), st.booleans(), st.integers(1, 9))
def test_the_ends_are_those_of_a_json_parser(values: list, indent: int | None, ascii_only: bool, size: int):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode()[1:]
    marks = marks_of(text, size)
    assert all(is_end for _, is_end in marks)
    ends = [place for place, _ in marks]
    begins = [0, *(end + 1 for end in ends)]
    assert [json.loads(text[begin:end]) for begin, end in zip(begins, ends, strict=False)] == values
    assert text[ends[-1] :] == b"]"


@given(
    st.lists(st.sampled_from([b'"', b"\\", b"\n", b"{", b"}", b"[", b"]", b",", b"a"])).map(b"".join), st.integers(1, 6)
)
@example(b'"\\\n"', 2)
def test_any_text_gives_the_same_marks_however_it_is_cut(text: bytes, size: int):
    assert marks_of(text, size) == marks_of(text, len(text) + 1)


@pytest.mark.parametrize(
    ("text", "place"),
    [(b'"a\nb"', 2), (b'{"a": [1}', 8), (b"}", 0), (b'{"a": 1]', 7), (b'"a\\\nb"', 3)],
)
def test_what_cannot_be_well_formed_is_marked(text: bytes, place: int):
    assert marks_of(text, 100)[0] == (place, False)


def test_very_deep_nesting_takes_little_and_is_closed_again():
    scanner = ElementScanner()
    for _ in range(20):
        assert list(scanner.marks(b"[" * 10_000)) == []
    for _ in range(20):
        assert list(scanner.marks(b"]" * 10_000)) == []
    assert list(scanner.marks(b",")) == [(0, True)]
    assert list(scanner.marks(b"]")) == [(0, True)]
    assert scanner.closed


def test_a_run_of_backslashes_is_read_once():
    text = b'"' + b"\\" * 2_000_000 + b'",'
    assert marks_of(text, 1 << 19) == [(len(text) - 1, True)]


@pytest.mark.parametrize(
    ("begin", "text", "found"),
    [
        (b'\n{"a', b'{"a": "x,\n{"b": 1}', 8),
        (b'\n  {"a', b'{\n    {"b": 1},\n  {"c"', 14),
        (b'\r\n\t{"a', b'{"a"},\r\n\t{"b"', 5),
        (b"\n  {", b"{x\n]", 3),
        (b"\n{", b"{x\n ]\n]", 6),
        (b"\n  {", b"{x\n  ]", -1),
        (b"\n  {", b'{x,\n  "y"', -1),
        (b" {", b"{x,\n {", -1),
        (b"\n3", b"3,\n3", -1),
    ],
)
def test_the_next_element_is_known_by_how_it_begins_its_line(begin: bytes, text: bytes, found: int):
    assert NextElement(begin).find(text) == found
