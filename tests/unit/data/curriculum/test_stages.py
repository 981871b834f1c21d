"""Stages are read exactly or refused, and become whole samples."""

from __future__ import annotations

from fractions import Fraction

import pytest

from megatron_ext.data.curriculum.phases import PhasedOrder
from megatron_ext.data.curriculum.stages import Stage, parse_stage, stage_phases
from megatron_ext.errors import ConfigError, DataError


def test_a_stage_is_percentiles_and_tokens():
    assert parse_stage("0-30:2e9") == Stage("0-30:2e9", ((Fraction(0), Fraction(30)),), 2 * 10**9)
    assert parse_stage("0-12.5+50-100:1.5e3").percentiles == ((0, Fraction(25, 2)), (50, 100))
    assert parse_stage("0-100:9007199254740993").tokens == 9007199254740993  # no float in between


@pytest.mark.parametrize(
    "text",
    ["", "0-30", "0-30:", "30:5", "30-0:5", "0-101:5", "0-30:0", "0-30:1.5", "0-30:-5", "a-b:c", "0-0:5", "0-3.0.1:5"],
)
def test_what_is_no_stage_is_refused(text: str):
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_stage(text)


def test_tokens_become_whole_samples_of_the_percentiles():
    [phase] = stage_phases([parse_stage("10-30+50-60:105")], 50, 10)
    assert phase.ranges == ((5, 15), (25, 30)) and phase.count == 10


def test_too_few_and_too_many_tokens_are_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"9 tokens.*10"):
        stage_phases([parse_stage("0-100:9")], 50, 10)
    with pytest.raises(DataError, match=r"0-50:260 with 260 tokens, 10 in a sample, asks for 26 samples.*left 25"):
        PhasedOrder(stage_phases([parse_stage("0-50:260")], 50, 10), 50, 0)
