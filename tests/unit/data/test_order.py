"""Orders are functions of the place: any cut of the stream equals the stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.order import PermutedOrder, SequentialOrder, order_key


@pytest.mark.parametrize("kind", ["permuted", "sequential"])
@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 50), start=st.integers(0, 200), count=st.integers(0, 100))
def test_any_part_of_the_stream_is_that_part_of_the_stream(kind: str, size: int, start: int, count: int):
    order = PermutedOrder(size, "key") if kind == "permuted" else SequentialOrder(size)
    whole = order.sample_ids(0, 300)
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(order.sample_ids(start, count), whole[start : start + count])


@pytest.mark.parametrize("size", [1, 2, 37, 1000])
def test_each_epoch_holds_every_sample_once_in_an_order_of_its_own(size: int):
    order = PermutedOrder(size, order_key(1234, "train", 0, "data"))
    epochs = order.sample_ids(0, 4 * size).reshape(4, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    if size >= 37:
        assert len({epoch.tobytes() for epoch in epochs}) == 4


def test_the_order_depends_on_seed_split_place_and_data():
    keys = {
        order_key(seed, split, place, data)
        for seed in (1, 2)
        for split in ("train", "valid")
        for place in (0, 1)
        for data in ("x", "y")
    }
    orders = {PermutedOrder(1000, key).sample_ids(0, 1000).tobytes() for key in keys}
    assert len(keys) == len(orders) == 16


def test_a_far_place_needs_no_way_there():
    assert len(PermutedOrder(10**12, "key").sample_ids(10**15, 5)) == 5
