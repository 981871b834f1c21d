"""The points of --lr-decay-style multi-step, each a share of the decay after which the rate is a factor of the peak."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from megatron_ext.errors import ConfigError

DEFAULT_POINTS = ("0.8:0.316", "0.9:0.1")
"""DeepSeek LLM's (arXiv:2401.02954, section 2.3)."""
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE]-?[0-9]{1,2})?"
_POINT = re.compile(rf"({_NUMBER}):({_NUMBER})")


class StepPoint(NamedTuple):
    """From this share of the decay on, the rate is `factor` times --lr."""

    share: Fraction
    factor: float


def parse_step_points(words: Sequence[str] | None) -> list[StepPoint]:
    """Read `SHARE:FACTOR SHARE:FACTOR ...`; None gives DeepSeek's points.

    Raises:
        ConfigError: one is not of this form, a share is not above the one before and below 1, or a factor is above 1.
    """
    points: list[StepPoint] = []
    for word in words or DEFAULT_POINTS:
        found = _POINT.fullmatch(word)
        share, factor = (Fraction(number) for number in found.groups()) if found else (Fraction(0), Fraction(0))
        if not (points[-1].share if points else 0) < share < 1 or not 0 < factor <= 1:
            raise ConfigError(
                f"--lr-multi-step-points {word} cannot be used",
                "A point is SHARE:FACTOR; shares of the decay rise between 0 and 1, factors of --lr are above 0 and at "
                "most 1",
                f"Give for example --lr-multi-step-points {' '.join(DEFAULT_POINTS)}",
            )
        points.append(StepPoint(share, float(factor)))
    return points


def step_points_in_samples(words: Sequence[str] | None, decay: int) -> list[list[int | float]]:
    """Return `[samples, factor]` of each point: the first position of the schedule at which the factor holds.

    Args:
        words: the points as they were typed.
        decay: length of the decay, samples.
    """
    return [[math.ceil(point.share * decay), point.factor] for point in parse_step_points(words)]
