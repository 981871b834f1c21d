"""The bytes of a block give records, or an error for each that is none; the quick way and the careful way agree."""

from __future__ import annotations

import json

import orjson
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.records import REASONS, RecordError
from megatron_ext.data.sources import parsing

ELEMENTS = [
    b'{"a": 1}',
    b' {"b": "x,y"}\n',
    b"",
    b"{",
    b"[1]",
    b"3",
    b'{"c": NaN}',
    b'{"\xff": 0}',
    b'{"d": "\\ud800"}',
]


def outcome(record: object) -> object:
    return record.reason if isinstance(record, RecordError) else record


@given(st.lists(st.one_of(st.sampled_from(ELEMENTS), st.binary(max_size=8).filter(lambda b: b"\n" not in b))))
def test_each_line_is_judged_by_itself(lines: list[bytes]):
    found = parsing.parse_lines(lines)
    assert len(found) == len(lines)
    for line, record in zip(lines, found, strict=True):
        try:
            wanted = orjson.loads(line)
        except orjson.JSONDecodeError:
            assert outcome(record) in REASONS
        else:
            assert outcome(record) == (wanted if isinstance(wanted, dict) else "not an object")


@given(st.lists(st.sampled_from(ELEMENTS), min_size=1), st.booleans())
def test_elements_of_a_block_are_judged_like_lines(elements: list[bytes], only_good: bool):
    elements = [e for e in elements if e.strip()[:1] == b"{" and e != b"{"] or [b"{}"] if only_good else elements
    payload = b",".join(elements)
    lengths = [sum(map(len, elements[: index + 1])) + index for index in range(len(elements))]
    ends = parsing.np.array(lengths, "int64").tobytes()
    found = list(map(outcome, parsing.parse_elements(payload, ends)))
    wanted = [
        outcome(record) if element.strip() else "broken JSON"
        for element, record in zip(elements, parsing.parse_lines(elements), strict=True)
    ]
    assert found == wanted
    assert [payload[begin:end] for begin, end in parsing.element_bounds(ends)] == elements


@given(st.lists(st.sampled_from([b"a", b"\xff", b"", b"b\r", "\u2028\u00e9".encode(), b"\x00", b"\xed\xa0\x80"])))
def test_lines_of_text_are_decoded_one_by_one_where_one_is_broken(lines: list[bytes]):
    def decoded(line: bytes) -> str:
        try:
            return line.removesuffix(b"\r").decode()
        except UnicodeDecodeError:
            return "invalid UTF-8"

    payload = b"".join(line + b"\n" for line in lines)
    assert list(map(outcome, parsing.decode_lines(payload))) == list(map(decoded, lines))
    if lines and lines[-1]:
        assert list(map(outcome, parsing.decode_lines(payload[:-1]))) == list(map(decoded, lines))


def test_the_byte_that_is_not_utf8_is_named():
    [error] = parsing.decode_texts([b"ab\xff"])
    assert outcome(error) == "invalid UTF-8"
    assert isinstance(error, RecordError)
    assert "byte 3" in error.detail


def stream_of(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_rows_come_out_as_objects_and_a_row_that_is_not_utf8_alone_is_refused():
    bad = pyarrow.array([b"ok", b"\xff", b"fine"], pyarrow.binary()).cast(pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, *bad.buffers()[1:])
    payload = stream_of(pyarrow.table({"text": text, "n": [1, 2, None]}))
    assert list(map(outcome, parsing.table_rows(payload))) == [
        {"text": "ok", "n": 1},
        "invalid UTF-8",
        {"text": "fine", "n": None},
    ]
    assert json.loads(parsing.row_as_json(payload, 0)) == {"text": "ok", "n": 1}
    assert json.loads(parsing.row_as_json(payload, 1)) == {"text": "/w==", "n": 2}


@pytest.mark.parametrize("value", [b"\x00", 1.5, [{"a": "b"}], None, "中"])
def test_a_row_can_be_told_as_json(value: object):
    payload = stream_of(
        pyarrow.Table.from_pylist([{"x": 0}, {"x": 1}]).append_column("v", pyarrow.array([None, value]))
    )
    told = json.loads(parsing.row_as_json(payload, 1))
    assert told == {"x": 1, "v": "AA==" if value == b"\x00" else value}
