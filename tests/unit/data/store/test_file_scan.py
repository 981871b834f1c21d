"""Every observer sees every byte once and in order, and nobody waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.store.file_scan import scan_file
from megatron_ext.errors import DataError


@settings(deadline=None, max_examples=40)
@given(size=st.integers(0, 100), block_bytes=st.sampled_from([1, 8, 64]))
def test_all_observers_see_the_whole_file_in_order(size: int, block_bytes: int, tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "file"
    path.write_bytes(bytes(range(size)))
    first, second, told = bytearray(), bytearray(), []
    scan_file(path, [first.extend, second.extend], told.append, block_bytes)
    assert first == second == path.read_bytes()
    assert sum(told) == size
    assert all(step == block_bytes for step in told[:-1])
    assert size == 0 or 0 < told[-1] <= block_bytes


def test_what_an_observer_raises_ends_the_scan(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")

    def fail(block: memoryview) -> None:
        raise DataError("the disk is full")

    for size in (1, 8):  # in the middle, and at the last block
        with pytest.raises(DataError, match="full"):
            scan_file(path, [fail], lambda _: None, size)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent.*No such file"):
        scan_file(tmp_path / "absent", [lambda _: None], lambda _: None)
