"""What stands in an order where it must not: kernel and twin find the same places as reading it one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native, native_numpy

MODULES = [native, native_numpy]
BOTH = pytest.mark.parametrize("module", MODULES)


def one_by_one(ids: list[int], num_ids: int, looks_for_repeated: bool) -> tuple[int, int]:
    outside = [place for place, sample in enumerate(ids) if not 0 <= sample < num_ids]
    if outside:
        return outside[0], -1
    repeated = [place for place, sample in enumerate(ids) if sample in ids[:place]]
    return -1, repeated[0] if repeated and looks_for_repeated else -1


@settings(deadline=None, max_examples=300)
@given(
    ids=st.lists(st.integers(-1, 13), max_size=14) | st.permutations(range(12)),
    num_ids=st.integers(0, 13),
    ids_at_once=st.sampled_from([0, 1, 2, 5, 12, 64, 2**30]),
    block=st.sampled_from([1, 5, 2**20]),
)
def test_they_are_found_where_they_stand_first(ids: list[int], num_ids: int, ids_at_once: int, block: int):
    wanted = one_by_one(ids, num_ids, ids_at_once > 0)
    for module in MODULES:
        with mock.patch.object(native_numpy, "_ORDER_BLOCK", block):
            assert module.misplaced_ids(np.array(ids, np.int64), num_ids, ids_at_once) == wanted


@pytest.mark.parametrize("ids_at_once", [3 << 20, 1 << 30])
def test_ids_of_more_than_a_block_and_more_than_a_range_of_the_kernel(ids_at_once: int):
    size = (1 << 22) + 100_000
    ids = native.permute(1, size, np.arange(size))
    assert native.misplaced_ids(ids, size, ids_at_once) == (-1, -1)
    ids[size - 5] = ids[7]  # a block apart
    assert native.misplaced_ids(ids, size, ids_at_once) == (-1, size - 5)
    ids[size - 70_000 : size - 69_998] = ids[size - 70_001]  # inside the last block
    assert native.misplaced_ids(ids, size, ids_at_once) == (-1, size - 70_000)
    ids[size - 1] = size
    assert native.misplaced_ids(ids, size, ids_at_once) == (size - 1, -1)


@BOTH
def test_ids_past_2_to_31_and_as_large_as_they_get_are_told_apart(module: Any):
    ids = np.array([2**31, 2**40, 2**31 + 2**32, 2**40 + 2**32, 2**61, 2**40], np.int64)
    assert module.misplaced_ids(ids, 2**62, 0) == (-1, -1)
    assert module.misplaced_ids(ids, 2**61, 0) == (4, -1)
    near = np.array([2**31, 2**32 - 1, 5, 2**31 - 1, 2**32 - 2, 2**32 - 1], np.int64)
    assert module.misplaced_ids(near, 2**32, 2**29) == (-1, 5)
    assert module.misplaced_ids(near[:5], 2**32, 2**29) == (-1, -1)
    assert module.misplaced_ids(np.array([-(2**63), 2**63 - 1]), 2**62, 5) == (0, -1)


@BOTH
def test_ids_of_another_type_or_layout_are_refused(module: Any):
    for ids in (np.zeros(3, np.int32), np.zeros((2, 2), np.int64), np.arange(6)[::2]):
        with pytest.raises(ValueError, match="one contiguous row of int64"):
            module.misplaced_ids(ids, 10, 10)
    for num_ids, ids_at_once in ((-1, 1), (2**62 + 1, 1), (1, -1), (1, 2**62 + 1)):
        with pytest.raises(ValueError, match="2\\^62"):
            module.misplaced_ids(np.zeros(1, np.int64), num_ids, ids_at_once)


def test_threads_look_at_the_same_ids_at_once():
    ids = native.permute(1, 300_000, np.arange(300_000))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda at_once: native.misplaced_ids(ids, len(ids), at_once), [1 << 16, 1 << 30] * 8))
    assert set(found) == {(-1, -1)}
