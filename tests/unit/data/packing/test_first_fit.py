"""First fit by a tree of rooms gives the bins of the published scan, and is fast enough for millions of rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.packing.first_fit import first_fit
from tests.unit.data.packing.published_rules import published_scan


def items_by_bin(bins: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(bins == number).tolist() for number in range(int(bins.max()) + 1)] if len(bins) else []


@given(st.lists(st.integers(1, 29), max_size=60))
def test_bins_are_those_of_the_published_scan(lengths: list[int]):
    assert items_by_bin(first_fit(np.array(lengths, np.int64), 40 - 11)) == published_scan(lengths, 40)


@given(st.integers(1, 12), st.data())
def test_bins_are_those_of_the_published_scan_for_small_bins(capacity: int, data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=40))
    assert items_by_bin(first_fit(np.array(lengths, np.int64), capacity)) == published_scan(lengths, capacity + 11)


def test_an_example_by_hand():
    # 7 opens bin 0, 5 does not fit and opens bin 1, 3 fills bin 0, 4 goes to bin 1, 2 finds room in neither
    assert first_fit(np.array([7, 5, 3, 4, 2, 1]), 10).tolist() == [0, 1, 0, 1, 2, 1]


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(0, 30))
def test_items_after_the_openers_fill_open_bins_alone(lengths: list[int], openers: int):
    openers = min(openers, len(lengths))
    bins = first_fit(np.array(lengths, np.int64), 12, openers)
    room: list[int] = []
    for item, length in enumerate(lengths):
        fitting = [number for number, left in enumerate(room) if left >= length]
        if not fitting and item < openers:
            room.append(12)
            fitting = [len(room) - 1]
        assert bins[item] == (fitting[0] if fitting else -1)
        if fitting:
            room[fitting[0]] -= length


@pytest.mark.parametrize("length", [0, 11])
def test_lengths_that_fit_no_bin_are_a_mistake_of_the_caller(length: int):
    with pytest.raises(ValueError, match="for bins of 10"):
        first_fit(np.array([3, length]), 10)


def test_the_work_grows_as_n_log_n():
    numbers = np.random.default_rng(0)
    spent = {}
    for count in (5_000, 50_000):
        lengths = numbers.integers(1, 2000, count)
        spent[count] = min(_seconds(lengths) for _ in range(3))
    assert spent[50_000] < 30 * spent[5_000]  # a scan would need 100 times as long


def _seconds(lengths: np.ndarray) -> float:
    start = time.process_time()
    first_fit(lengths, 4085)
    return time.process_time() - start
