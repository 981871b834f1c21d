"""A file named .json is read as what it holds: an array, JSON lines, or one object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ext.data.sources.blocks import Position
from megatron_ext.data.sources.json_file import is_one_object
from megatron_ext.errors import DataError
from tests.unit.data.sources.written import values, write_input

BOM = b"\xef\xbb\xbf"
RECORDS = [{"text": "one"}, {"text": "two", "n": [1, {"a": None}]}]
LINES = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)


@pytest.mark.parametrize("compression", ["", "gz", "zst"])
@pytest.mark.parametrize("mark", [b"", BOM, b" \n\t", BOM + b"\r\n"])
@pytest.mark.parametrize("block_bytes", [1, 10, 1 << 19])
def test_arrays_and_lines_are_told_apart(tmp_path: Path, compression: str, mark: bytes, block_bytes: int):
    for indent in (None, 0, 1, 4):
        array = json.dumps(RECORDS, indent=indent).encode()
        assert values([write_input(tmp_path, "a", "json", mark + array, compression)], block_bytes) == RECORDS
    lines = BOM + LINES if mark.startswith(BOM) else LINES
    assert values([write_input(tmp_path, "l", "json", lines, compression)], block_bytes) == RECORDS


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_one_object_is_one_record(tmp_path: Path, indent: int | None, mark: bytes):
    for record in (RECORDS[1], {"a": {}, "b": {"c": {}}}):
        content = mark + json.dumps(record, indent=indent).encode() + b"\n"
        assert values([write_input(tmp_path, "o", "json", content)]) == [record]


def test_one_object_that_is_broken_or_followed_by_another_is_one_broken_record(tmp_path: Path):
    for content in (b'{\n "a": 1\n', b'{\n "a": 1\n}\n{\n "a": 1\n}\n'):
        assert values([write_input(tmp_path, "o", "json", content)]) == ["broken JSON"]


def test_lines_whose_first_is_broken_stay_lines(tmp_path: Path):
    for first in (b'{"text": "x', b'{"text" "x"}', b"", b"nonsense", b'{"text": "x"}, '):
        file = write_input(tmp_path, "l", "json", first + b"\n" + LINES)
        reason = "broken JSON" if first else "blank line"
        assert values([file]) == [reason, *RECORDS]


@pytest.mark.parametrize("content", [b"", BOM, b" ", b"\n"])
def test_a_file_of_nothing_has_no_document(tmp_path: Path, content: bytes):
    found = values([write_input(tmp_path, "x", "json", content)])
    assert found == (["blank line"] if content in (b" ", b"\n") else [])


def test_an_array_that_is_another_one_than_before_is_refused(tmp_path: Path):
    file = write_input(tmp_path, "a", "json", b'[{"a": 1}, {"a": 2}]')
    assert values([file], start=Position(0, 9, 1)) == [{"a": 2}]
    assert values([file], start=Position(0, 19, 2)) == []
    with pytest.raises(DataError, match="no element ends at byte 8"):
        values([file], start=Position(0, 8, 1))


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (b'{\n  "a": 1\n}', True),
        (b'{"a": [\n1]}', True),
        (b'{"a": 1}', False),
        (b'{"a": 1}\n', False),
        (b'{"a": 1} \r\n{"a": 2}', False),
        (b'{"a"\n{"a": 2}', False),
        (b"", False),
        (b"1\n2", False),
    ],
)
def test_one_object_is_known_by_its_first_two_lines(text: bytes, is_one: bool):
    assert is_one_object(text) is is_one
