"""Pacing opens what its formula says, and every sample is drawn once, never before it is open."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.pacing import Pacing, paced_phases
from megatron_ext.data.curriculum.phases import PhasedOrder
from megatron_ext.errors import ConfigError

PACINGS = st.one_of(
    st.builds(Pacing, st.just("linear"), st.floats(0.01, 1), st.floats(0.1, 1)),
    st.builds(Pacing, st.just("root"), st.floats(0.01, 1), st.floats(0.1, 1), st.floats(1, 5)),
    st.builds(lambda n: Pacing("steps", 1 / n, num_steps=n), st.integers(1, 20)),
    st.just(Pacing("list", points=((0.0, 0.25), (0.2, 0.5), (0.4, 1.0)))),
)


@given(PACINGS, st.integers(1, 400), st.integers(1, 300), st.integers(0, 3))
def test_no_sample_stands_before_it_is_open(pacing: Pacing, num_samples: int, cuts: int, seed: int):
    phases = paced_phases(pacing, num_samples, cuts)
    order = PhasedOrder(phases, num_samples, seed)
    places = order.places(np.arange(num_samples, dtype=np.int64))
    assert sorted(places.tolist()) == list(range(num_samples))
    ends = np.cumsum([phase.count for phase in phases])
    for rank, place in enumerate(places.tolist()):
        end = int(ends[np.searchsorted(ends, place, side="right")])
        assert rank < max(math.ceil(pacing.share(place / num_samples) * num_samples + 1e-6), end)


@pytest.mark.parametrize("kind", ["linear", "root", "steps"])
def test_drawing_is_uniform_among_what_is_open(kind: str):
    """Against the naive simulation: at each place one of the open samples that are left, all equally likely."""
    pacing, num_samples, random = Pacing(kind, 0.1), 400, np.random.default_rng(0)
    naive, ours = np.zeros(num_samples), np.zeros(num_samples)
    for seed in range(60):
        pool: list[int] = []
        opened = 0
        for place in range(num_samples):
            now = max(place + 1, math.ceil(pacing.share(place / num_samples) * num_samples - 1e-9))
            pool += range(opened, min(now, num_samples))
            opened = max(opened, min(now, num_samples))
            naive[pool.pop(int(random.integers(len(pool))))] += place / 60
        order = PhasedOrder(paced_phases(pacing, num_samples), num_samples, seed)
        ours += order.places(np.arange(num_samples)) / 60
    by_tenth = np.abs(naive.reshape(20, -1).mean(axis=1) - ours.reshape(20, -1).mean(axis=1))
    assert by_tenth.max() < 0.05 * num_samples


def test_the_formulas_have_their_values():
    assert Pacing("linear", 0.2, 0.5).share(0.25) == pytest.approx(0.6)
    assert Pacing("linear", 0.2, 0.5).share(0.7) == 1
    assert Pacing("root", 0.1, 1.0, 2.0).share(0.5) == pytest.approx(math.sqrt(0.01 + 0.99 / 2))
    assert Pacing("steps", 0.25, num_steps=4).steps() == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    assert Pacing("steps", 0.5, full_at=0.3, num_steps=2).steps() == [(0, 0.5), (0.3, 1)]
    assert Pacing("list", points=((0, 0.5), (0.5, 1))).share(0.49) == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "cosine"}, "linear, root, steps, list"),
        ({"start_share": 0.0}, "--start-share"),
        ({"start_share": math.nan}, "--start-share"),
        ({"full_at": 1.5}, "--full-at"),
        ({"root": 0.5}, "--root"),
        ({"num_steps": 0}, "--num-steps"),
        ({"kind": "steps", "start_share": 0.05}, "easiest 0.05 of all.*share 0.1"),
        ({"kind": "list"}, "not a pacing"),
        ({"kind": "list", "points": ((0, 0.5),)}, "not a pacing"),
        ({"kind": "list", "points": ((0, 0.5), (0.4, 0.3), (0.5, 1))}, "not a pacing"),
        ({"kind": "list", "points": ((0, 0.5), (0.7, 1))}, "from progress 0 to 0.7 only the easiest 0.5"),
    ],
)
def test_pacing_that_cannot_be_is_refused(values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Pacing(**values)
