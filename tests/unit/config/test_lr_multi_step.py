"""Points of a multi-step rate are read exactly, and hold from the first sample at or after their share."""

from __future__ import annotations

import re

import pytest

from megatron_ext.config.lr_multi_step import parse_step_points, step_points_in_samples
from megatron_ext.errors import ConfigError


def test_without_points_they_are_deepseeks():
    assert step_points_in_samples(None, 1000) == [[800, 0.316], [900, 0.1]]
    assert step_points_in_samples(["1e-1:0.5", "0.30:2.5e-1"], 1000) == [[100, 0.5], [300, 0.25]]


@pytest.mark.parametrize("decay", [3, 7, 10, 1001, 123_457])
def test_a_point_holds_from_its_exact_share(decay: int):
    """No rounding of a share: the first position at or after it."""
    for percent in (1, 29, 57, 70, 90):
        [[begin, factor]] = step_points_in_samples([f"{percent / 100}:0.5"], decay)
        assert (begin - 1) * 100 < percent * decay <= begin * 100 and factor == 0.5


@pytest.mark.parametrize("word", ["0.5", "0.5:", "0:0.5", "1:0.5", "0.5:0", "0.5:1.1", "x:1", "-0.1:1", "0.9:0.1"])
def test_unreadable_points_are_refused(word: str):
    with pytest.raises(ConfigError, match=f"--lr-multi-step-points {re.escape(word)} cannot"):
        parse_step_points(["0.4:0.9", "0.95:0.5", word] if word == "0.9:0.1" else [word])
