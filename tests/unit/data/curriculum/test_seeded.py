"""Shuffles are permutations that words choose; groups find every label."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.seeded import groups, shuffled


@given(st.integers(1, 500), st.integers(0, 9), st.integers(0, 9))
def test_shuffles_are_permutations_chosen_by_words(size: int, one: int, other: int):
    everything = np.arange(size)
    assert sorted(shuffled(everything, size, "a", one).tolist()) == everything.tolist()
    same = np.array_equal(shuffled(everything, size, "a", one), shuffled(everything, size, "a", other))
    assert same or one != other


@given(st.lists(st.integers(0, 9), min_size=1, max_size=50), st.sampled_from([10, 1 << 20]))
def test_groups_name_every_place_once(labels: list[int], num_labels: int):
    found = {label: here.tolist() for label, here in groups(np.array(labels), num_labels)}
    assert found == {label: [i for i, at in enumerate(labels) if at == label] for label in set(labels)}
