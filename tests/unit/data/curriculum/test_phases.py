"""Phases draw what they ask for, from where they may, never twice, and evenly."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.phases import Phase, PhasedOrder
from megatron_ext.errors import DataError

SAMPLES = 40
RANGES = st.lists(
    st.tuples(st.integers(0, SAMPLES), st.integers(0, SAMPLES)).map(lambda r: tuple(sorted(r))), max_size=3
)


def drawn_by_phase(order: PhasedOrder, phases: list[Phase], num_samples: int = SAMPLES) -> list[list[int]]:
    places = order.places(np.arange(num_samples, dtype=np.int64))
    given_out = places[places >= 0]
    assert sorted(given_out.tolist()) == list(range(order.num_places))
    by_place = np.argsort(np.where(places < 0, num_samples, places), kind="stable")[: order.num_places].tolist()
    ends = np.cumsum([phase.count for phase in phases]).tolist()
    return [by_place[end - phase.count : end] for phase, end in zip(phases, ends, strict=True)]


@given(st.lists(st.tuples(RANGES, st.integers(0, 12)), min_size=1, max_size=5), st.integers(0, 3))
def test_phases_draw_from_their_ranges_or_are_refused(specification: list, seed: int):
    """The naive simulation: a set of what is left, and per phase how much of it lies in the ranges."""
    phases = [Phase(tuple(ranges), count, f"stage {i}") for i, (ranges, count) in enumerate(specification)]
    try:
        order, refused = PhasedOrder(phases, SAMPLES, seed), None
    except DataError as error:
        order, refused = None, str(error)
    left = set(range(SAMPLES))
    for index, phase in enumerate(phases):
        allowed = {rank for first, last in phase.ranges for rank in range(first, last)} & left
        if len(allowed) < phase.count:
            assert refused is not None and f"stage {index} asks for {phase.count} samples" in refused
            assert f"left {len(allowed)} samples" in refused
            return
        assert refused is None or f"stage {index} " not in refused
        if order is not None:
            drawn = drawn_by_phase(order, phases)[index]
            assert set(drawn) <= allowed and len(set(drawn)) == phase.count
            left -= set(drawn)
        else:  # which samples it would have drawn is not known, but a later phase was refused: nothing more to compare
            return


def test_every_part_of_a_range_gives_the_same_share():
    phases = [Phase(((0, 5000),), 1000), Phase(((0, 10_000),), 3000)]
    first, second = drawn_by_phase(PhasedOrder(phases, 10_000, 0), phases, 10_000)
    assert np.histogram(first, 5, (0, 5000))[0].min() > 150  # 200 expected
    easy = sum(rank < 5000 for rank in second)
    assert abs(easy - 3000 * 4000 / 9000) <= 1
    assert abs(np.corrcoef(np.arange(3000), second)[0, 1]) < 0.08


@given(st.lists(st.tuples(RANGES, st.integers(0, 6), st.booleans()), min_size=1, max_size=6), st.integers(0, 3))
def test_mixed_phases_draw_as_alone_and_are_given_together(specification: list, seed: int):
    phases = [Phase(tuple(ranges), count, mixed=mixed) for ranges, count, mixed in specification]
    alone = [dataclasses.replace(phase, mixed=False) for phase in phases]
    try:
        apart = drawn_by_phase(PhasedOrder(alone, SAMPLES, seed), alone)
    except DataError:
        with pytest.raises(DataError):
            PhasedOrder(phases, SAMPLES, seed)
        return
    wanted: list[set[int]] = []
    for phase, drawn in zip(phases, apart, strict=True):
        if phase.mixed and wanted:
            wanted[-1] |= set(drawn)
        else:
            wanted.append(set(drawn))
    mixtures = [Phase((), len(drawn)) for drawn in wanted]
    found = drawn_by_phase(PhasedOrder(phases, SAMPLES, seed), mixtures)
    assert [set(drawn) for drawn in found] == wanted


def test_a_mixture_is_shuffled_evenly():
    phases = [Phase(((0, 9000),), 3000), Phase(((9000, 10_000),), 1000, mixed=True)]
    places = PhasedOrder(phases, 10_000, 0).places(np.arange(10_000))
    rare = np.sort(places[9000:])
    counts = np.histogram(rare, 8, (0, 4000))[0]
    assert counts.sum() == 1000 and abs(counts - 125).max() < 40
    assert abs(np.corrcoef(np.arange(3000), places[:9000][places[:9000] >= 0])[0, 1]) < 0.08


def test_the_seed_decides():
    phases = [Phase(((0, 100),), 50)]
    one, again, other = (PhasedOrder(phases, 100, seed).places(np.arange(100)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_counts_near_2_to_the_32_do_not_overflow():
    most = 2**32 - 1
    order = PhasedOrder([Phase(((0, most),), most - 5), Phase(((0, most),), 5)], most, 0)
    ranks = np.array([0, 1, 2**31, most - 1])
    assert len(set(order.places(ranks).tolist())) == 4 and order.num_places == most


def test_more_than_there_is_left_is_refused_with_numbers():
    with pytest.raises(DataError, match=r"asks for 6 samples.*left 5 samples"):
        PhasedOrder([Phase(((0, 10),), 5), Phase(((0, 10),), 6)], 100, 0)
