"""Totals per source are whole numbers: the same for every cut of a batch, and over any stop and resume."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.training.source_losses import (
    LOSS_UNIT,
    Decision,
    SourceProgress,
    SourceTotals,
    distinct_names,
    sources_record,
)


def totals(*columns: tuple[int, int, int]) -> SourceTotals:
    """Samples, tokens and loss units of each source."""
    return SourceTotals(np.array(columns, np.int64).T)


DECISION = Decision(4, 16, (0.25, 0.75), (2.5, None))
STEPS = [totals((3, 20, 1000), (1, 0, 0)), totals((2, 11, 77), (2, 5, 123456789)), totals((0, 0, 0), (4, 9, 1))]


def test_losses_are_means_per_token_and_shares_those_of_samples():
    some = totals((3, 20, int(50 / LOSS_UNIT)), (1, 0, 0))
    assert some.losses == [2.5, None]
    assert some.shares == [0.75, 0.25]
    assert SourceTotals.zeros(2).shares == [0.0, 0.0] and SourceTotals.zeros(2).losses == [None, None]


@given(st.permutations(STEPS))
def test_the_order_of_adding_does_not_matter(steps: list[SourceTotals]):
    total = steps[0] + steps[1] + steps[2]
    assert total.sums.tolist() == [[5, 7], [31, 14], [1077, 123456790]]


def test_equality_is_that_of_the_numbers():
    assert totals((1, 2, 3)) == totals((1, 2, 3))
    assert totals((1, 2, 3)) != totals((1, 2, 4)) and totals((1, 2, 3)) != totals((1, 2, 3), (0, 0, 0))


@pytest.mark.parametrize("stop", range(4))
def test_a_resume_goes_on_with_what_was_interrupted(stop: int):
    """Through the JSON of a checkpoint, at any step; large counts stay exact."""
    steps = [*STEPS, totals((2**60, 2**60 + 1, 2**61 + 1), (1, 1, 1))]
    whole = SourceProgress.begin(2)
    for step in steps:
        whole.add(step)
    parts = SourceProgress.begin(2)
    for step in steps[:stop]:
        parts.add(step)
    parts = SourceProgress.from_record(json.loads(json.dumps(parts.to_record())))
    for step in steps[stop:]:
        parts.add(step)
    assert parts == whole


def test_reports_and_decisions_begin_anew_each_for_itself():
    progress = SourceProgress.begin(2)
    progress.add(STEPS[0])
    assert progress.take_report() == STEPS[0]
    progress.add(STEPS[1])
    progress.decide(DECISION)
    assert progress.since_report == STEPS[1] and progress.since_decision == SourceTotals.zeros(2)
    progress.add(STEPS[2])
    assert progress.take_report() == STEPS[1] + STEPS[2] and progress.since_decision == STEPS[2]
    assert progress.decisions == [DECISION]
    assert SourceProgress.from_record(json.loads(json.dumps(progress.to_record()))) == progress


GOOD = SourceProgress(STEPS[0], STEPS[1], [DECISION]).to_record()


@pytest.mark.parametrize(
    "change",
    [
        {"since_report": None},
        {"since_report": [[1], [2]]},
        {"since_report": [[1, 2], [3, 4], [5]]},
        {"since_report": [[1, 2], [3, 4], [5, 6.5]]},
        {"since_report": [[1, 2], [3, 4], [5, -6]]},
        {"since_decision": [[1], [2], [3]]},
        {"decisions": None},
        {"decisions": [{}]},
        {"decisions": [{**DECISION.to_record(), "iteration": 0}]},
        {"decisions": [{**DECISION.to_record(), "consumed_samples": "4"}]},
        {"decisions": [{**DECISION.to_record(), "weights": [1.0, 2.0, 3.0]}]},
        {"decisions": [{**DECISION.to_record(), "weights": ["heavy", 1.0]}]},
        {"decisions": [{**DECISION.to_record(), "losses": None}]},
    ],
)
def test_what_is_no_record_is_refused(change: dict):
    assert SourceProgress.from_record(GOOD).decisions == [DECISION]
    with pytest.raises(ValueError, match=r"sources|weights|could not convert"):
        SourceProgress.from_record({**GOOD, **change})
    with pytest.raises(ValueError, match="lack a value"):
        SourceProgress.from_record({name: value for name, value in GOOD.items() if name not in change})


def test_names_are_as_typed_and_equal_ones_are_numbered():
    assert distinct_names(["data/zh", "data/en"]) == ("data/zh", "data/en")
    assert distinct_names(["a", "b", "a"]) == ("a #1", "b", "a #2")


def test_the_line_of_an_interval():
    record = sources_record({"iteration": 4, "consumed_samples": 16}, ("a", "b"), totals((3, 2, 65536), (1, 0, 0)))
    assert record == {
        "iteration": 4,
        "consumed_samples": 16,
        "sources": [
            {"name": "a", "samples": 3, "tokens": 2, "share": 0.75, "loss": 0.5},
            {"name": "b", "samples": 1, "tokens": 0, "share": 0.25, "loss": None},
        ],
    }
