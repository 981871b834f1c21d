"""An order file gives back its ids, for its own data only."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.order_file import FileOrder, OrderTarget, write_order_file
from megatron_ext.errors import DataError

TARGET = OrderTarget("data", 0, 80, 16, 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "easy_first.order"
    write_order_file(path, [5, 3, 99, 3, 0], TARGET, {"by": "a test"})
    return path


def test_ids_come_in_order_and_begin_again(path: Path):
    order = FileOrder(path, TARGET)
    assert len(order) == 5
    assert order.sample_ids(0, 12).tolist() == [5, 3, 99, 3, 0, 5, 3, 99, 3, 0, 5, 3]
    assert order.sample_ids(7, 2).tolist() == [99, 3]


def test_the_file_is_a_json_line_and_aligned_raw_ids(path: Path):
    line, raw = path.read_bytes().split(b"\n", 1)
    header = json.loads(line)
    assert (len(line) + 1) % 64 == 0
    assert np.frombuffer(raw, "<i8").tolist() == [5, 3, 99, 3, 0]
    assert header["count"] == 5
    assert header["made_by"] == {"by": "a test"}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(OrderTarget)])
def test_other_data_is_refused_with_both_values(path: Path, field: str):
    other = "other" if isinstance(getattr(TARGET, field), str) else getattr(TARGET, field) + 1
    with pytest.raises(DataError, match=f"{field}.*{getattr(TARGET, field)}.*{other}"):
        FileOrder(path, dataclasses.replace(TARGET, **{field: other}))


def test_a_file_that_does_not_speak_of_packing_is_about_windows(path: Path):
    line, ids = path.read_bytes().split(b"\n", 1)
    path.write_bytes(line.replace(b', "packing": "stream"', b"") + b"\n" + ids)
    assert b"packing" not in path.read_bytes()
    assert len(FileOrder(path, TARGET)) == 5
    with pytest.raises(DataError, match=r"packing is stream.*documents"):
        FileOrder(path, dataclasses.replace(TARGET, packing="documents"))


@pytest.mark.parametrize("change", ["cut", "longer", "bit", "header", "version", "text", "empty"])
def test_damaged_files_are_refused(path: Path, change: str):
    content = bytearray(path.read_bytes())
    if change == "cut":
        content = content[:-8]
    if change == "longer":
        content += b"\x00" * 8
    if change == "bit":
        content[-16] ^= 1
    if change == "header":
        content = content.replace(b"megatron_ext", b"something_xx")
    if change == "version":
        content = content.replace(b'"format_version": 1', b'"format_version": 2')
    if change == "text":
        content = bytearray(b"5 3 99\n")
    if change == "empty":
        content = bytearray()
    path.write_bytes(content)
    with pytest.raises(DataError, match="easy_first"):
        FileOrder(path, TARGET)


def test_a_missing_file_explains_what_an_order_is(tmp_path: Path):
    with pytest.raises(DataError, match="permuted, megatron, sequential"):
        FileOrder(tmp_path / "permutd", TARGET)


@pytest.mark.parametrize("ids", [[100], [-1], []])
def test_ids_outside_the_data_are_not_written(tmp_path: Path, ids: list[int]):
    with pytest.raises(DataError):
        write_order_file(tmp_path / "x", ids, TARGET, {})
    assert not list(tmp_path.iterdir())


def test_ids_outside_the_data_are_not_read(tmp_path: Path):
    write_order_file(tmp_path / "x", [1, 99], TARGET, {})
    content = (tmp_path / "x").read_bytes().replace(b'"num_samples": 100', b'"num_samples": 50 ')
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="sample id 99 at place 1"):
        FileOrder(tmp_path / "x", dataclasses.replace(TARGET, num_samples=50))
