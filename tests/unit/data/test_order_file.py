"""An order file gives back its ids, for its own data only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data import order_file
from megatron_ext.data.order_file import FileOrder, OrderFileWriter, OrderTarget, write_order_file
from megatron_ext.errors import DataError
from tests.unit.data.mutants import damaged_bytes

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
        content = content.replace(b'"format_version": 2', b'"format_version": 3')
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


def sealed(path: Path, **changes: object) -> None:
    """Change the header, and make its checksum fit again."""
    line, ids = path.read_bytes().split(b"\n", 1)
    header = {**json.loads(line), **changes}
    header.pop("header_sha256")
    header["header_sha256"] = hashlib.sha256(json.dumps(header).encode()).hexdigest()
    line = json.dumps(header).encode()
    path.write_bytes(line + b" " * (-(len(line) + 1) % 64) + b"\n" + ids)


def test_ids_outside_the_data_are_not_read(path: Path):
    smaller = dataclasses.replace(TARGET, num_samples=50)
    sealed(path, target=dataclasses.asdict(smaller))
    with pytest.raises(DataError, match="sample id 99 at place 2"):
        FileOrder(path, smaller)


SMALL = OrderTarget("data", 0, 80, 16, 5)


@pytest.mark.parametrize(
    ("promise", "ids", "accepted"),
    [
        ("permutation", [4, 2, 0, 1, 3], True),
        ("permutation", [4, 2, 0, 1, 1], False),
        ("permutation", [4, 2, 0, 1], False),
        ("distinct", [4, 2], True),
        ("distinct", [4, 2, 4], False),
        ("distinct", [4, 2, 0, 1, 3, 3], False),
        ("", [4, 2, 4, 4, 4, 4], True),
    ],
)
@pytest.mark.parametrize("seen_at_once", [2, 1 << 27])
def test_a_file_that_breaks_its_promise_is_refused(
    promise: str, ids: list[int], accepted: bool, seen_at_once: int, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(order_file, "_SEEN_AT_ONCE", seen_at_once)
    monkeypatch.setattr(order_file, "_BLOCK", 2)
    write_order_file(tmp_path / "x", ids, SMALL, {})
    if promise:
        sealed(tmp_path / "x", **{promise: True})
    if accepted:
        assert FileOrder(tmp_path / "x", SMALL).sample_ids(0, len(ids)).tolist() == ids
        return
    with pytest.raises(DataError, match=f"promises (every|no) sample.*(twice, but sample id|{len(ids)} ids)"):
        FileOrder(tmp_path / "x", SMALL)


@pytest.mark.parametrize("seen_at_once", [2, 1 << 30])
def test_what_stands_twice_is_told_with_both_places(seen_at_once: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(order_file, "_SEEN_AT_ONCE", seen_at_once)
    monkeypatch.setattr(order_file, "_BLOCK", 2)
    write_order_file(tmp_path / "x", [4, 3, 2, 0, 2], SMALL, {})
    sealed(tmp_path / "x", permutation=True)
    with pytest.raises(DataError, match="sample id 2 stands in it at place 2 and again at place 4"):
        FileOrder(tmp_path / "x", SMALL)


def test_the_range_comes_before_the_checksum_and_that_before_the_promise(tmp_path: Path):
    path = tmp_path / "x"
    write_order_file(path, [4, 2, 0, 3, 2], SMALL, {})
    sealed(path, permutation=True)
    content = bytearray(path.read_bytes())
    content[-4 * 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="its checksum does not match"):
        FileOrder(path, SMALL)
    content[-1] ^= 0x80
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"sample id -9223372036854775806 at place 4.*samples 0 to 4"):
        FileOrder(path, SMALL)


def test_a_writer_in_pieces_writes_the_same_file(tmp_path: Path):
    write_order_file(tmp_path / "whole", [3, 1, 2], SMALL, {"by": "a test"})
    with OrderFileWriter(tmp_path / "pieces", 3, SMALL, {"by": "a test"}) as writer:
        writer.append([3])
        writer.append(np.array([1, 2], np.uint32))
        writer.publish()
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path):
    with (
        pytest.raises(DataError, match="sample id 5 at place 1"),
        OrderFileWriter(tmp_path / "x", 2, SMALL, {}) as writer,
    ):
        writer.append([1])
        writer.append([5])
    with pytest.raises(ValueError, match="1 ids were written of 2"), OrderFileWriter(tmp_path / "x", 2, SMALL, {}) as w:
        w.append([1])
        w.publish()
    with pytest.raises(DataError, match="6 ids, the data 5 samples"):
        OrderFileWriter(tmp_path / "x", 6, SMALL, {}, "distinct")
    assert not list(tmp_path.iterdir())


def test_no_mutation_of_an_order_file_is_accepted(tmp_path: Path):
    """Every byte of a small file, and thousands of random cuts, insertions and changes."""
    path, random = tmp_path / "x", np.random.default_rng(0)
    with OrderFileWriter(path, 5, SMALL, {"by": "a test", "nested": {"a": [1, 2.5, None]}}, "permutation") as writer:
        writer.append([4, 2, 0, 1, 3])
        writer.publish()
    good = path.read_bytes()
    FileOrder(path, SMALL)
    for mutant in damaged_bytes(random, good, (1, 16), 700):
        path.write_bytes(mutant)
        with pytest.raises(DataError):
            FileOrder(path, SMALL)
