"""Kinds of bad input by name: each costs its own record alone, never the run, its neighbours, or the count."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from megatron_ext.data.records import REASONS
from megatron_ext.data.sources.pieces import ReadOptions
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import parquet_bytes, raws, values, write_input

GOOD = {"text": "good 中"}
GOOD_LINE = json.dumps(GOOD).encode()

BAD = {
    "broken JSON": (b'{"text": "a"', "broken JSON"),
    "trailing text": (b'{"text": "a"} x', "broken JSON"),
    "two objects on a line": (b'{"text": "a"}{"text": "b"}', "broken JSON"),
    "trailing comma": (b'{"text": "a",}', "broken JSON"),
    "single quotes": (b"{'text': 'a'}", "broken JSON"),
    "NaN literal": (b'{"text": NaN}', "broken JSON"),
    "Infinity literal": (b'{"text": -Infinity}', "broken JSON"),
    "number beyond a double": (b'{"n": 1e400}', "broken JSON"),
    "number of a million digits": (b'{"n": ' + b"9" * 10**6 + b"}", "broken JSON"),
    "blank line": (b"", "blank line"),
    "line of white space": (b" \t  ", "blank line"),
    "NUL bytes": (b"\x00" * 10, "broken JSON"),
    "NUL byte in a text": (b'{"text": "a\x00"}', "broken JSON"),
    "control character in a text": (b'{"text": "\x01"}', "broken JSON"),
    "byte order mark in the middle": (b'\xef\xbb\xbf{"text": "a"}', "broken JSON"),
    "invalid UTF-8": (b'{"text": "\xff"}', "invalid UTF-8"),
    "overlong UTF-8": (b'{"text": "\xc0\xaf"}', "invalid UTF-8"),
    "text cut inside a character": (b'{"text": "\xe4\xb8"}', "invalid UTF-8"),
    "surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8"),
    "lone high surrogate": (b'{"text": "\\ud800"}', "lone surrogate"),
    "lone low surrogate": (b'{"text": "\\udc00 x"}', "lone surrogate"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16-le"), "broken JSON"),
    "nesting of 100,000": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deep"),
    "objects nested 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deep"),
    "a list": (b'[{"text": "a"}]', "not an object"),
    "a text": (b'"text"', "not an object"),
    "a number": (b"12", "not an object"),
    "null": (b"null", "not an object"),
    "longer than allowed": (b'{"text": "' + b"x" * (1 << 21) + b'"}', "too long"),
}
ODD = {
    "CR before the line end": (b'{"text": "a"}\r', {"text": "a"}),
    "CR between": (b'{"text":\r"a"}', {"text": "a"}),
    "space around": (b'  {"text": "a"} ', {"text": "a"}),
    "U+2028, U+0085 and VT as characters": ('{"text": "a\u2028b\x85"}'.encode(), {"text": "a\u2028b\x85"}),
    "duplicate keys": (b'{"text": "a", "text": "b"}', {"text": "b"}),
    "escaped NUL": (b'{"text": "\\u0000"}', {"text": "\x00"}),
    "escaped surrogate pair": (b'{"text": "\\ud83d\\ude42"}', {"text": "🙂"}),
    "non-characters": ('{"text": "\ufffe\uffff"}'.encode(), {"text": "\ufffe\uffff"}),
    "right-to-left and combining floods": (
        ('{"text": "' + "\u202e\u0301" * 50_000 + '"}').encode(),
        {"text": "\u202e\u0301" * 50_000},
    ),
    "nesting of 100": (
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        {"a": json.loads("[" * 100 + "]" * 100)},
    ),
    "empty text": (b'{"text": ""}', {"text": ""}),
    "a megabyte without a space": (b'{"text": "' + b"x" * (1 << 19) + b'"}', {"text": "x" * (1 << 19)}),
    "no keys": (b"{}", {}),
}
OPTIONS = ReadOptions(max_record_bytes=1 << 20)


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize("name", [*BAD, *ODD])
def test_a_line(tmp_path: Path, name: str, compression: str):
    line, wanted = {**BAD, **ODD}[name]
    content = b"\n".join([GOOD_LINE, line, line, GOOD_LINE, line]) + (b"\n" if not line else b"")
    file = write_input(tmp_path, "x", "jsonl", content, compression)
    assert values([file], options=OPTIONS) == [GOOD, wanted, wanted, GOOD, wanted]
    if name in BAD:
        assert wanted in REASONS
        if wanted != "too long":
            assert raws([file], options=OPTIONS)[1] == line


# On one line nothing tells where an element with a bracket missing ends: see the refusals of test_arrays.py.
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (name, layout)
        for layout in (b"[%b]", b"[\n%b\n]\n")
        for name in (*BAD, *ODD)
        if (name, layout) != ("broken JSON", b"[%b]")
    ],
)
def test_an_element_of_an_array(tmp_path: Path, name: str, layout: bytes):
    element, wanted = {**BAD, **ODD}[name]
    wanted = "broken JSON" if wanted == "blank line" else wanted
    between = b",\n" if b"\n" in layout else b","
    content = layout % between.join([GOOD_LINE, element, element, GOOD_LINE, element])
    file = write_input(tmp_path, "x", "json", content)
    assert values([file], options=OPTIONS) == [GOOD, wanted, wanted, GOOD, wanted]


@pytest.mark.parametrize("name", ["invalid UTF-8", "overlong UTF-8", "text cut inside a character"])
def test_a_line_of_text(tmp_path: Path, name: str):
    line, wanted = BAD[name]
    file = write_input(tmp_path, "x", "text", b"\n".join([b"good", line, b"", b"\x00 ", b"good"]))
    assert values([file]) == ["good", wanted, "", "\x00 ", "good"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "text"])
@pytest.mark.parametrize("compression", ["", "gz", "zst"])
def test_an_empty_file_has_no_records(tmp_path: Path, kind: str, compression: str):
    assert values([write_input(tmp_path, "x", kind, b"", compression)]) == []


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_packed_files_laid_end_to_end_are_read_to_the_end(tmp_path: Path, compression: str):
    pack = gzip.compress if compression == "gz" else zstandard.ZstdCompressor().compress
    file = write_input(tmp_path, "x", "jsonl", b"", compression)
    file.path.write_bytes(b"".join(pack(GOOD_LINE + b"\n") for _ in range(500)))
    assert values([file]) == [GOOD] * 500


def test_a_line_without_its_end_before_another_file_stays_its_own(tmp_path: Path):
    files = [write_input(tmp_path, str(index), "jsonl", GOOD_LINE) for index in range(2)]
    assert values(files) == [GOOD, GOOD]


def test_null_and_other_types_in_a_table_are_left_to_the_row_form(tmp_path: Path):
    rows = [{"text": None, "n": 1}, {"text": "a", "n": None}]
    assert values([write_input(tmp_path, "x", "parquet", parquet_bytes(rows))]) == rows


@pytest.mark.parametrize("kind", ["jsonl", "json", "text", "text-file", "parquet"])
def test_a_packed_file_under_the_name_of_a_plain_one_is_refused(tmp_path: Path, kind: str):
    with pytest.raises(DataError, match="damaged after record 0"):
        values([write_input(tmp_path, "x", kind, gzip.compress(GOOD_LINE))])
