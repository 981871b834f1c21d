"""Moving weights: the realised shares follow the line, in integers, from any place; wrong schedules are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.blend_schedule import Knot, parse_schedule, scheduled_mixture
from megatron_ext.errors import DataError

SHARES = st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any)


def area(knots: list[Knot], places: np.ndarray, seq_length: int) -> np.ndarray:
    """The integral of the shares up to each place, float64 `[n, k]`, by the trapezoid rule over single places."""
    at = np.arange(places.max() + 1) + 0.5  # the middle of each place
    tokens = [-(-knot.tokens // seq_length) for knot in knots]
    shares = np.stack(
        [np.interp(at, tokens, column) for column in zip(*(knot.shares for knot in knots), strict=True)], 1
    )
    return np.concatenate([np.zeros((1, shares.shape[1])), np.cumsum(shares, axis=0)])[places]


@settings(deadline=None, max_examples=25)
@given(
    weights=st.lists(SHARES, min_size=1, max_size=4),
    gaps=st.lists(st.integers(1, 40_000), min_size=4, max_size=4),
    start=st.integers(0, 5000),
)
def test_samples_drawn_follow_the_line_at_every_place(weights: list[list[int]], gaps: list[int], start: int):
    tokens = start + np.cumsum([0, *gaps])
    knots = parse_schedule(
        [f"{place}:{','.join(map(str, row))}" for place, row in zip(tokens, weights, strict=False)], 3
    )
    mixture = scheduled_mixture(knots, 8)
    places = np.linspace(0, tokens[-1] // 8 + 500, 300).astype(np.int64)
    drawn = np.stack([mixture.drawn(int(place)) for place in places])
    # the logarithm for each change of weights that is not made good by the next step, and half a step off the line
    assert np.abs(drawn - area(knots, places, 8)).max() <= 3 * 17 + max(gaps) / 8 / 256
    assert (drawn.sum(axis=1) == places).all()


def test_finance_rises_from_one_in_ten_to_one_in_five():
    knots = parse_schedule(["0:9,1", "4e6:4,1"], 2)
    mixture = scheduled_mixture(knots, 4)
    assert mixture.weights_at(0)[1] == pytest.approx(0.1, abs=0.001)
    assert mixture.weights_at(500_000)[1] == pytest.approx(0.15, abs=0.001)
    assert mixture.weights_at(1_000_000)[1] == mixture.weights_at(5_000_000)[1] == pytest.approx(0.2)
    dataset, _ = mixture.places(0, 1_000_000)
    assert np.count_nonzero(dataset) == pytest.approx(150_000, abs=20)
    part, _ = scheduled_mixture(knots, 4).places(777_777, 1000)
    np.testing.assert_array_equal(part, dataset[777_777:778_777])


def test_a_dataset_can_come_in_late_and_go_out():
    mixture = scheduled_mixture(parse_schedule(["1000:1,0", "2000:0,1", "3000:0,1", "3001:1,0"], 2), 1)
    dataset, _ = mixture.places(0, 5000)
    assert not dataset[:1000].any()
    assert dataset[2000:3000].all()
    assert not dataset[3001:].any()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["0:1,1", "0:1,2"], "rise"),
        (["5:1,1", "4:1,2"], "rise"),
        (["0:1"], "1 weights"),
        (["0:1,1,1"], "3 weights"),
        (["0:1,-1"], "at least 0"),
        (["0:0,0"], "not all"),
        (["0:nan,1"], "finite"),
        (["0:1e999,1"], "finite"),
        (["0:a,1"], "cannot be read"),
        (["1,1"], "cannot be read"),
        (["-5:1,1"], "cannot be read"),
        (["0.5:1,1"], "cannot be read"),
        (["inf:1,1"], "cannot be read"),
        (["nan:1,1"], "cannot be read"),
        (["0:"], "cannot be read"),
    ],
)
def test_schedules_that_cannot_be_followed_are_refused(words: list[str], why: str):
    with pytest.raises(DataError, match=why):
        parse_schedule(words, 2)


def test_weights_of_any_size_are_shares():
    assert parse_schedule(["2e9:1e308,1e308"], 2) == [Knot(2_000_000_000, (0.5, 0.5))]
