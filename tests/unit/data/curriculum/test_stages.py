"""Stages are read exactly or refused, and become whole samples."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.curriculum.phases import Phase, PhasedOrder
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.data.curriculum.stages import Share, Stage, parse_stage, quotas, stage_phases
from megatron_ext.errors import ConfigError, DataError

ALL = ((Fraction(0), Fraction(100)),)
ONE = SampleSpace(("data",), (50,), 10)
TWO = SampleSpace(("general", "finance"), (200, 50), 10)


def test_a_stage_is_percentiles_and_tokens():
    assert parse_stage("0-30:2e9") == Stage("0-30:2e9", 2 * 10**9, ((Fraction(0), Fraction(30)),))
    assert parse_stage("0-12.5+50-100:1.5e3").percentiles == ((0, Fraction(25, 2)), (50, 100))
    assert parse_stage("0-100:9007199254740993").tokens == 9007199254740993  # no float in between


def test_a_stage_may_name_datasets_with_weights_and_percentiles():
    text = "general*9@0-30+60-80,2*1e-1:2e9"
    general = Share("general", Fraction(9), ((Fraction(0), Fraction(30)), (Fraction(60), Fraction(80))))
    assert parse_stage(text) == Stage(text, 2 * 10**9, shares=(general, Share("2", Fraction(1, 10), ALL)))
    assert parse_stage("zh:x/a b.c*0.5, d*0:10").shares == (
        Share("zh:x/a b.c", Fraction(1, 2), ALL),
        Share("d", Fraction(0), ALL),
    )


@pytest.mark.parametrize(
    "text",
    [
        *("", "0-30", "0-30:", "30:5", "30-0:5", "0-101:5", "0-30:0", "0-30:1.5", "0-30:-5", "a-b:c", "0-0:5"),
        *("0-3.0.1:5", "general:5", "general@0-30:5", "*1:5", "a*1,:5", "a*1,b:5", "a*1@:5", "a*1@30-0:5", "a*1@0-30"),
        *("0-30,a*1:5", "a*1:nan", "a*1:1e999", "a*1:0"),
    ],
)
def test_what_is_no_stage_is_refused(text: str):
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_stage(text)


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "x", "", "1*2", "1e999"])
def test_what_is_no_weight_is_refused_with_its_dataset(weight: str):
    with pytest.raises(ConfigError, match=r"the weight of finance belongs.*0 or above"):
        parse_stage(f"general*1,finance*{weight}:5")
    with pytest.raises(ConfigError, match="all weights are 0"):
        parse_stage("general*0,finance*0.0:5")


def test_tokens_become_whole_samples_of_the_percentiles():
    [phase] = stage_phases([parse_stage("10-30+50-60:105")], ONE)
    assert phase.ranges == ((5, 15), (25, 30)) and phase.count == 10
    [phase] = stage_phases([parse_stage("20-40:105")], TWO)
    assert phase.ranges == ((50, 100),)  # of all samples together


def test_shares_become_whole_samples_of_each_datasets_own_percentiles():
    stages = [parse_stage("general*2@0-50,finance*1@20-40:109"), parse_stage("finance*0,1*1:25")]
    phases = stage_phases(stages, TWO)
    assert [(p.ranges, p.count, p.mixed) for p in phases] == [
        (((0, 100),), 7, False),
        (((210, 220),), 3, True),
        (((0, 200),), 2, False),
    ]


@given(st.lists(st.fractions(0, 100), min_size=1, max_size=6).filter(any), st.integers(0, 10**6))
def test_quotas_add_up_and_are_less_than_one_from_exact(weights: list[Fraction], count: int):
    parts = quotas(weights, count)
    assert sum(parts) == count
    for weight, part in zip(weights, parts, strict=True):
        assert abs(part - weight * count / sum(weights)) < 1 and (weight or not part)


def test_what_was_cut_off_most_is_rounded_up():
    assert quotas([Fraction(1), Fraction(1), Fraction(1)], 5) == [2, 2, 1]
    assert quotas([Fraction(9), Fraction(1)], 25) == [23, 2]
    assert quotas([Fraction(7), Fraction(3)], 9) == [6, 3]


def test_too_few_and_too_many_tokens_are_refused_with_numbers():
    with pytest.raises(ConfigError, match=r"9 tokens.*10"):
        stage_phases([parse_stage("0-100:9")], ONE)
    with pytest.raises(DataError, match=r"0-50:260 with 260 tokens, 10 in a sample, asks for 26 samples.*left 25"):
        PhasedOrder(stage_phases([parse_stage("0-50:260")], ONE), 50, 0)


def test_more_than_a_dataset_has_left_is_refused_with_the_dataset_and_the_stage():
    stages = [parse_stage("general*1,finance*1:600"), parse_stage("general*1,finance*1:600")]
    with pytest.raises(DataError, match=r"finance\*1:600 with 600 .* takes finance .* asks for 30 samples.*left 20"):
        PhasedOrder(stage_phases(stages, TWO), 250, 0)


def test_stages_that_do_not_go_together_or_name_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"0-30:100 and general\*1:100 do not go together"):
        stage_phases([parse_stage("0-30:100"), parse_stage("general*1:100")], TWO)
    with pytest.raises(ConfigError, match=r"--stages code\*1:100 names 'code', which is no dataset"):
        stage_phases([parse_stage("code*1:100")], TWO)
    assert stage_phases([parse_stage("data*1:100")], ONE)[0] == Phase(
        ((0, 50),), 10, "--stages data*1:100 with 100 tokens, 10 in a sample, takes data by weight and"
    )
