"""Every order gives each rank one place, the one that a list built step by step gives it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.orders import Buckets, InterleavedOrder, JitteredOrder, SortedOrder, WarmupOrder
from megatron_ext.errors import ConfigError

SIZES = st.integers(1, 300)


def ranks_by_place(order, num_samples: int) -> list[int]:
    places = order.places(np.arange(num_samples, dtype=np.int64))
    assert sorted(places.tolist()) == list(range(num_samples)) and order.num_places == num_samples
    scattered = np.random.default_rng(0).permutation(num_samples)
    assert np.array_equal(order.places(scattered), places[scattered])  # a function of the rank alone
    return np.argsort(places).tolist()


def buckets_of(num_samples: int, count: int) -> list[list[int]]:
    """Consecutive ranks, as even as possible, the larger buckets first."""
    return [bucket.tolist() for bucket in np.array_split(np.arange(num_samples), count)]


@given(SIZES, st.integers(1, 300))
def test_interleaved_is_dealing_in_turn(num_samples: int, count: int):
    count = min(count, num_samples)
    buckets = buckets_of(num_samples, count)
    dealt = [bucket.pop(0) for _ in range(num_samples) for bucket in buckets if bucket]
    assert ranks_by_place(InterleavedOrder(num_samples, count), num_samples) == dealt


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 5))
def test_warmup_is_sorted_and_then_everything_else(num_samples: int, share: float, seed: int):
    ranks = ranks_by_place(WarmupOrder(num_samples, share, seed), num_samples)
    easiest = round(share * num_samples)
    assert ranks[:easiest] == list(range(easiest))


def test_the_rest_after_a_warmup_is_shuffled_by_the_seed():
    one, two = (ranks_by_place(WarmupOrder(1000, 0.2, seed), 1000) for seed in (1, 2))
    assert one[200:] != two[200:] and one[200:] != sorted(one[200:])
    assert one == ranks_by_place(WarmupOrder(1000, 0.2, 1), 1000)
    assert abs(np.corrcoef(np.arange(800), one[200:])[0, 1]) < 0.15


@given(SIZES, st.integers(1, 300), st.integers(0, 5))
def test_jitter_stays_inside_its_bucket(num_samples: int, count: int, seed: int):
    count = min(count, num_samples)
    ranks = ranks_by_place(JitteredOrder(SortedOrder(num_samples), num_samples, count, seed), num_samples)
    for bucket in buckets_of(num_samples, count):
        assert sorted(ranks[bucket[0] : bucket[-1] + 1]) == bucket


def test_jitter_shuffles_and_comes_before_the_method():
    plain, jittered = InterleavedOrder(1000, 10), JitteredOrder(InterleavedOrder(1000, 10), 1000, 10, 1)
    assert ranks_by_place(plain, 1000) != ranks_by_place(jittered, 1000)
    assert [rank // 100 for rank in ranks_by_place(jittered, 1000)] == list(range(10)) * 100


@given(SIZES, st.integers(1, 300))
def test_buckets_know_their_ranks(num_samples: int, count: int):
    count = min(count, num_samples)
    buckets = Buckets(num_samples, count, "--buckets")
    wanted = [index for index, bucket in enumerate(buckets_of(num_samples, count)) for _ in bucket]
    assert buckets.of(np.arange(num_samples)).tolist() == wanted
    assert buckets.start(np.array([0, count])).tolist() == [0, num_samples]


@pytest.mark.parametrize("count", [0, -1, 11])
def test_impossible_buckets_and_shares_are_refused(count: int):
    with pytest.raises(ConfigError, match=f"--buckets {count} .*from 1 to the number of samples, 10"):
        InterleavedOrder(10, count)
    with pytest.raises(ConfigError, match="--warmup-share"):
        WarmupOrder(10, float(count), 0)
