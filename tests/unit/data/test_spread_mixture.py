"""Mixtures by formula: weights at every place, no sample left out or given twice, entered and changed anywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.spread_mixture import EpochMixture, WeightedMixture, weight_thresholds

FAR = 3 * 10**12
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=12).filter(any)


def draws(dataset: np.ndarray, number: int) -> np.ndarray:
    """How often each dataset stands before each place, int64 `[count + 1, k]`."""
    drawn = np.cumsum(dataset[:, None] == np.arange(number), axis=0)
    return np.concatenate([np.zeros((1, number), np.int64), drawn])


@settings(deadline=None, max_examples=60)
@given(weights=WEIGHTS, start=st.one_of(st.integers(0, 300), st.integers(FAR, FAR + 300)), count=st.integers(0, 99))
def test_any_part_of_the_mixture_is_that_part(weights: list[float], start: int, count: int):
    first = 0 if start < FAR else FAR
    whole = WeightedMixture(weights).places(first, 400)
    part = WeightedMixture(weights).places(start, count)
    for found, wanted in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found, wanted[start - first : start - first + count])


@settings(deadline=None, max_examples=60)
@given(WEIGHTS)
def test_weights_are_kept_at_every_place_to_within_the_logarithm(weights: list[float]):
    dataset, place = WeightedMixture(weights).places(0, 2000)
    drawn = draws(dataset, len(weights))
    share = np.array(weights) / np.sum(weights)
    allowed = np.array([n.bit_count() for n in range(2001)])[:, None] + 1e-6
    assert (np.abs(drawn - share * np.arange(2001)[:, None]) <= allowed).all()
    np.testing.assert_array_equal(place, drawn[np.arange(2000), dataset])  # the next sample of its dataset


def test_a_dataset_of_weight_zero_is_never_drawn():
    dataset, _ = WeightedMixture([0, 2, 0, 1, 0]).places(0, 1 << 15)
    assert set(dataset.tolist()) == {1, 3}


def test_a_rare_dataset_in_front_is_as_rare_as_its_weight():
    dataset, _ = WeightedMixture([1e-4, 1]).places(0, 1_000_000)
    assert abs(np.count_nonzero(dataset == 0) - 100) <= math.log2(1e6) + 1


@settings(deadline=None, max_examples=60)
@given(
    changes=st.lists(st.tuples(st.integers(0, 200), st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any))),
    first=st.sampled_from([0, FAR]),
)
def test_changed_weights_leave_what_came_before_and_no_gap(changes: list[tuple[int, list[int]]], first: int):
    mixture, at = WeightedMixture([3, 1, 2]), first
    for further, weights in changes:
        at += further
        before = mixture.places(first, at - first)
        mixture.reweight(at, weights)
        for found, wanted in zip(mixture.places(first, at - first), before, strict=True):
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_allclose(mixture.weights_at(at), np.array(weights) / sum(weights))
    dataset, place = mixture.places(first, at - first + 100)
    drawn = draws(dataset, 3) + mixture.drawn(first)
    np.testing.assert_array_equal(place, drawn[np.arange(len(dataset)), dataset])
    np.testing.assert_array_equal(mixture.drawn(at + 100), drawn[at + 100 - first])


def test_weights_before_the_last_change_cannot_change():
    mixture = WeightedMixture([1, 1])
    mixture.reweight(10, [1, 2])
    with pytest.raises(ValueError, match="place 10"):
        mixture.reweight(9, [1, 3])


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
def test_an_epoch_of_all_datasets_holds_every_sample_once(sizes: list[int]):
    mixture, total = EpochMixture(sizes), sum(sizes)
    dataset, place = mixture.places(0, 3 * total)
    for epoch in range(3):
        here = slice(epoch * total, (epoch + 1) * total)
        found = sorted(zip(dataset[here].tolist(), place[here].tolist(), strict=True))
        assert found == [(i, epoch * size + j) for i, size in enumerate(sizes) for j in range(size)]
    part = mixture.places(total // 2, 2 * total)
    np.testing.assert_array_equal(part[0], dataset[total // 2 : total // 2 + 2 * total])
    np.testing.assert_array_equal(part[1], place[total // 2 : total // 2 + 2 * total])


def test_the_datasets_of_an_epoch_are_spread_over_all_of_it():
    sizes = np.array([5, 1000, 300, 20_000])
    drawn = draws(EpochMixture(sizes).places(0, int(sizes.sum()))[0], 4)
    wanted = np.arange(len(drawn))[:, None] * sizes / sizes.sum()
    assert np.abs(drawn - wanted).max() <= 2 * math.log2(sizes.sum())


def test_ten_thousand_datasets_far_away_keep_their_weights():
    weights = np.random.default_rng(0).pareto(1.0, 10_000) + 0.01
    mixture = WeightedMixture(weights)
    assert np.abs(mixture.drawn(FAR) - weights / weights.sum() * FAR).max() <= FAR.bit_count() + 1
    dataset, place = mixture.places(FAR, 10_000)
    assert dataset.max() > 9000
    before, after = mixture.drawn(FAR), mixture.drawn(FAR + 10_000)
    for found in np.unique(dataset).tolist():
        assert place[dataset == found].tolist() == list(range(before[found], after[found]))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0], []])
def test_weights_that_make_no_shares_are_refused(weights: list[float]):
    with pytest.raises(ValueError, match="weights"):
        weight_thresholds(weights)


def test_weights_of_any_size_have_thresholds():
    assert weight_thresholds([1e308, 1e308]).tolist() == [0, 1 << 52, 1 << 53]
    assert weight_thresholds([5e-324, 0, 5e-324]).tolist() == [0, 1 << 52, 1 << 52, 1 << 53]
