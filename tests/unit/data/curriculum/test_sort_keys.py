"""Keys sort as difficulties do, and ranges of keys divide them evenly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megatron_ext.data.curriculum.sort_keys import KeyFile, difficulties_of, sortable_keys
from megatron_ext.errors import DataError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
DIFFICULTIES = arrays(np.float32, st.integers(1, 60), elements=FINITE)


@given(DIFFICULTIES, st.booleans())
def test_keys_compare_as_difficulties_do(values: np.ndarray, reverse: bool):
    keys = sortable_keys(values, reverse)
    wanted = -values if reverse else values
    assert np.array_equal(keys[:, None] < keys[None, :], wanted[:, None] < wanted[None, :])
    assert np.array_equal(difficulties_of(keys, reverse), values)


@given(
    st.one_of(
        st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=80),
        st.lists(st.integers(10**9, 10**9 + 300_000), min_size=1, max_size=80),
        st.lists(st.integers(5, 8), min_size=1, max_size=80),
    ),
    st.integers(1, 20),
)
def test_ranges_are_as_small_as_asked_and_complete(tmp_path_factory, keys: list[int], largest: int):
    array = np.array(keys, np.uint32)
    with KeyFile(tmp_path_factory.getbasetemp()) as file:
        file.append(array[:7])
        file.append(array[7:])
        ranges = file.ranges(largest)
    found = ranges.of(array)
    assert np.array_equal(found, np.searchsorted(ranges.first_keys, array, side="right") - 1)
    sizes = np.diff(ranges.starts)
    assert np.array_equal(np.bincount(found, minlength=len(sizes)), sizes)
    for index in np.flatnonzero(sizes > largest):
        assert len(set(array[found == index].tolist())) == 1
    assert np.all(sizes[:-1] + sizes[1:] > largest)  # none could be joined with the next


def test_keys_of_some_samples_are_found_again(tmp_path: Path):
    keys = np.random.default_rng(0).integers(0, 2**32, 1000).astype(np.uint32)
    with KeyFile(tmp_path) as file:
        file.append(keys)
        assert len(file) == 1000
        samples = np.array([999, 0, 5, 5, 700])
        assert np.array_equal(file.of(samples), keys[samples])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_missing_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="absent"):
        KeyFile(tmp_path / "absent")
