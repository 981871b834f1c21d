"""An array's elements come out once and in order; a broken one costs itself alone, or the file is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.sources.arrays import ArrayCutter, check_end
from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.pieces import DamagedFileError, FileJob, ReadOptions, ReadProgress
from tests.unit.data.sources.test_array_scan import JSON_VALUES, pieces_of
from tests.unit.data.sources.written import InputFile, told

GOOD = [{"text": "one"}, {"text": "t,w]o"}, {"text": "three"}]


def cutter(limit: int = 1 << 30, origin: int = 1, record: int = 0) -> ArrayCutter:
    start = Position(0, 0, record)
    job = FileJob(InputFile(Path("x"), "json"), start, None, ReadProgress(), 64, ReadOptions(limit))
    return ArrayCutter(job, origin)


def cut(text: bytes, size: int = 1 << 20, limit: int = 1 << 30) -> list:
    """Values of an array's text, its opening bracket included."""
    return [value for _, _, value in told(cutter(limit).blocks(iter(pieces_of(text[1:], size))))]


@settings(deadline=None)
@given(st.lists(JSON_VALUES, max_size=6), st.sampled_from([None, 0, 2]), st.integers(1, 40), st.integers(1, 30))
def test_elements_are_those_of_a_json_parser(elements: list, indent: int | None, size: int, limit: int):
    text = json.dumps(elements, indent=indent).encode()
    wanted = [element if isinstance(element, dict) else "not an object" for element in elements]
    assert cut(text, size) == wanted
    short = cut(text, size, limit)
    assert short == cut(text, 1 << 20, limit)
    assert [s for s in short if s != "too long"] == [w for w, s in zip(wanted, short, strict=True) if s != "too long"]


@pytest.mark.parametrize("text", [b"[]", b"[ \n ]  \n"])
def test_an_empty_array_has_no_records(text: bytes):
    assert cut(text) == []


BROKEN = {
    "trailing comma in an object": b'{"text": "x",}',
    "NaN": b'{"text": NaN}',
    "single quotes": b"{'text': 'x'}",
    "no colon": b'{"text" "x"}',
    "two values": b'{"text": "x"} {"text": "y"}',
    "quotes inside": b'{"text": "say "x", then"}',
    "nothing": b"",
    "junk": b"xyz",
    "a bracket too many": b'{"text": "x"}}',
    "invalid escape": b'{"text": "\\x"}',
}
BROKEN_ON_A_LINE = {
    "no closing quote": b'{"text": "x}',
    "no closing bracket": b'{"text": "x"',
    "cut in the middle": b'{"text": "x, and',
    "a line end in a string": b'{"text": "x\ny"}',
    "the wrong bracket": b'{"text": ["x"}',
    "the wrong bracket outside": b'{"text": "x"]',
}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_element_costs_itself_alone(name: str, place: int, size: int):
    elements = [json.dumps(element).encode() for element in GOOD]
    elements.insert(place, BROKEN[name])
    wanted = [*GOOD[:place], "broken JSON", *GOOD[place:]]
    assert cut(b"[%b]" % b", ".join(elements), size) == wanted
    assert cut(b"[\n%b\n]\n" % b",\n".join(elements), size) == wanted


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("name", BROKEN_ON_A_LINE)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\n    "])
def test_an_element_without_a_certain_end_ends_with_its_line(name: str, place: int, size: int, line_end: bytes):
    elements = [json.dumps(element).encode() for element in GOOD]
    elements.insert(place, BROKEN_ON_A_LINE[name])
    wanted = [*GOOD[:place], "broken JSON", *GOOD[place:]]
    assert cut(b"[%b%b\n]" % (line_end, (b"," + line_end).join(elements)), size) == wanted


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_broken_element_of_a_pretty_printed_array_costs_itself_alone(size: int):
    elements = [{"text": "one", "tags": [{"a": 1}, {"b": 2}]}, {"text": "two", "tags": []}, {"text": "three"}]
    text = json.dumps(elements, indent=2).encode().replace(b'"one"', b'"one')
    assert cut(text, size) == ["broken JSON", *elements[1:]]


def test_a_string_over_a_line_end_in_an_array_on_one_line_costs_its_element_alone():
    assert cut(b'[{"text": "a\nb"}, {"text": "c"}]') == ["broken JSON", {"text": "c"}]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[", r"element 1 of its array, which begins at byte 1\b"),
        (b'[{"text": "a"}, {"text": "b', r"within element 2 of its array, which begins at byte 15\b"),
        (b'[{"text": "a"},', r"within element 2 of its array, which begins at byte 15\b"),
        (b'[{"text": "a}, {"text": "b"}]', r"within element 1 of its array, which begins at byte 1\b"),
        (b'[\n{"text": "a"},\n{"text": "b"\n', r"within element 2 of its array, which begins at byte 16\b"),
        (b'[{"text": "a"}] [', r"more follows the end of its array, at byte 16\b"),
        (b'[{"text": "a"}]]', r"more follows the end of its array, at byte 15\b"),
    ],
)
def test_an_array_without_a_certain_end_is_refused_with_the_byte(text: bytes, message: str, size: int):
    with pytest.raises(DamagedFileError, match=message):
        cut(text, size)


def test_a_broken_element_is_not_followed_further_than_a_record_may_be_long():
    text = b'[\n{"text": "a\n' + b"x" * 1000 + b'},\n{"text": "b"}\n]'
    assert cut(text, 50) == ["broken JSON", {"text": "b"}]
    with pytest.raises(DamagedFileError, match=r"element 1 .* cannot be told"):
        cut(text, 50, limit=500)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_element_may_be_exactly_as_long_as_allowed(size: int):
    text = b'[{"text": "a"},{"text": "ab"}]'
    assert cut(text, size, limit=14) == [{"text": "a"}, {"text": "ab"}]
    assert cut(text, size, limit=13) == [{"text": "a"}, "too long"]
    assert cut(text, size, limit=12) == ["too long", "too long"]


def test_an_element_of_a_gigabyte_takes_no_memory_and_the_next_ones_are_read():
    mebibyte = b"x" * (1 << 20)

    def pieces():
        yield b' {"text": "'
        for _ in range(1000):
            yield mebibyte
        yield b'"}, {"text": "next"}]'

    tracemalloc.start()
    blocks = list(cutter(limit=1 << 21).blocks(pieces()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [value for _, _, value in told(blocks)] == ["too long", {"text": "next"}]
    assert blocks[0].raw(0).startswith(b'{"text": "xxx')
    assert peak < 16 << 20


def test_the_text_behind_the_end_is_checked_to_its_end():
    check_end([b" \n", b"\t"], 5)
    with pytest.raises(DamagedFileError, match=r"at byte 8\b"):
        check_end([b" \n", b"\tx"], 5)
