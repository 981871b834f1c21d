"""megatron-core's greedy mixture keeps its weights at every place and can be entered anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import native
from megatron_ext.data import greedy_mixture
from megatron_ext.data.blend import normalize
from megatron_ext.data.greedy_mixture import GreedyMixture


@settings(deadline=None, max_examples=30)
@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=5), start=st.integers(0, 200), count=st.integers(0, 99))
def test_any_part_of_the_mixture_is_that_part(weights: list[int], start: int, count: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy_mixture, "_BLOCK", 16)
        whole = GreedyMixture(normalize(weights)).places(0, 300)
        part = GreedyMixture(normalize(weights)).places(start, count)
    for found, wanted in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found, wanted[start : start + count])


def test_blocks_join_without_a_seam():
    weights, size = normalize([3, 1, 2]), 3 * (1 << 16)
    dataset, place, _ = native.blend(weights, np.zeros(3, np.int64), 0, size)
    index = GreedyMixture(weights)
    for start in (100_000, 0, 65_530, 131_000):
        found = index.places(start, 5000)
        np.testing.assert_array_equal(found[0], dataset[start : start + 5000])
        np.testing.assert_array_equal(found[1], place[start : start + 5000])


def test_shares_are_kept_at_every_place():
    weights = normalize([0.5, 0.3, 0.2])
    dataset, _ = GreedyMixture(weights).places(0, 10_000)
    counts = np.cumsum(dataset[:, None] == np.arange(3), axis=0)
    places = np.arange(1, 10_001)[:, None]
    assert np.abs(counts - weights * places).max() <= 1.0 + 1e-9


def test_ten_thousand_datasets_keep_their_shares():
    weights = normalize(np.random.default_rng(0).pareto(1.0, 10_000) + 0.01)
    datasets, places = GreedyMixture(weights).places(60_000, 10_000)
    assert datasets.max() > 9000
    counts = np.bincount(GreedyMixture(weights).places(0, 70_000)[0], minlength=10_000)
    assert (counts - weights * 70_000).max() <= 1 + 1e-6
    assert (places <= weights[datasets] * 70_000 + 1).all()
