"""Weights of a blend that move with progress: straight lines between knots, in consumed tokens (--blend-schedule)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.spread_mixture import WeightedMixture
from megatron_ext.errors import DataError

_TOKENS = re.compile(r"[0-9]+(\.[0-9]+)?([eE]\+?[0-9]{1,2})?")
_STEPS = 256
"""Steps of constant weights that stand for the line between two knots."""


@dataclass(frozen=True)
class Knot:
    """The weights that are reached after some tokens.

    Attributes:
        tokens: consumed tokens of the run.
        shares: a share per dataset, sum 1.
    """

    tokens: int
    shares: tuple[float, ...]


def parse_schedule(words: Sequence[str], num_datasets: int) -> list[Knot]:
    """The knots that `TOKENS:WEIGHT,WEIGHT,...` words give.

    Raises:
        DataError: a word cannot be read, the tokens do not rise, or the weights are not one per dataset, at least 0 and
            not all 0.
    """
    knots = [_parse_knot(word, num_datasets) for word in words]
    for before, after in pairwise(knots):
        if after.tokens <= before.tokens:
            raise DataError(
                f"--blend-schedule: a knot at {after.tokens} tokens follows one at {before.tokens}",
                "The tokens of the knots rise",
            )
    return knots


def scheduled_mixture(knots: Sequence[Knot], seq_length: int) -> WeightedMixture:
    """The mixture whose shares run in straight lines from knot to knot, constant before the first and after the last.

    A line is held in 256 steps, each with the shares of its middle. What a step draws is what is missing at its end
    from the area under the line, so that the samples drawn so far stay with it and the errors of steps do not add up.

    Args:
        knots: with rising tokens.
        seq_length: tokens in a sample.
    """
    mixture = WeightedMixture(knots[0].shares)
    for before, after in pairwise(knots):
        first, last = (-(-knot.tokens // seq_length) for knot in (before, after))
        if before.shares != after.shares:
            _follow_line(mixture, (first, last), np.array(before.shares), np.array(after.shares))
        mixture.reweight(last, after.shares)
    return mixture


def _follow_line(
    mixture: WeightedMixture, bounds: tuple[int, int], begin: NDArray[np.float64], end: NDArray[np.float64]
) -> None:
    first, last = bounds
    steps = min(_STEPS, last - first)
    wanted = mixture.drawn(first).astype(np.float64)
    for step in range(steps):
        at, until = (first + (last - first) * number // steps for number in (step, step + 1))
        share = ((at + until) / 2 - first) / (last - first)
        shares = begin + (end - begin) * share
        wanted += shares * (until - at)
        missing = np.where(shares > 0, np.maximum(wanted - mixture.drawn(at), 0), 0)
        mixture.reweight(at, missing)


def _parse_knot(word: str, num_datasets: int) -> Knot:
    try:
        tokens, _, listed = word.partition(":")
        if not _TOKENS.fullmatch(tokens):
            raise ValueError("tokens")
        after, weights = Fraction(tokens), np.array([float(weight) for weight in listed.split(",")])
        if after.denominator != 1:
            raise ValueError("tokens")
    except ValueError:
        raise DataError(
            f"--blend-schedule {word} cannot be read",
            "A knot is TOKENS:WEIGHT,WEIGHT,... with a weight for each dataset, as in 2e9:4,1",
        ) from None
    if len(weights) != num_datasets:
        raise DataError(
            f"--blend-schedule {word} has {len(weights)} weights", f"There are {num_datasets} datasets, in their order"
        )
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise DataError(f"--blend-schedule {word}: its weights are finite numbers of at least 0, not all of them 0")
    shares = weights / weights.max()
    return Knot(int(after), tuple((shares / shares.sum()).tolist()))
