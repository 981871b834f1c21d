"""The console lines are Megatron-LM's, to the character, with our fields behind."""

from __future__ import annotations

import math
import re
from datetime import datetime

import numpy as np

from megatron_ext.training.log_line import (
    Interval,
    LineSettings,
    decision_line,
    evaluation_lines,
    sources_line,
    training_line,
)
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.source_losses import Decision, SourceTotals

AT = datetime(2025, 1, 2, 3, 4, 5, 678)


def result(**changes: object) -> StepResult:
    values = {"lm_loss": 3.0, "learning_rate": 3e-4, "global_batch_size": 16, "num_tokens": 1600, "seconds": 0.25}
    return StepResult(**{**values, **changes})


def line_of(results: list[StepResult], log_throughput: bool = False, flops: int = 10**12) -> str:
    state, interval = TrainState(iteration=90, consumed_samples=1440), Interval()
    for one in results:
        state.advance(one)
        interval.add(one, flops)
    settings = LineSettings(total_iterations=100, total_samples=1600, world_size=4, log_throughput=log_throughput)
    return training_line(AT, state, interval, results[-1], settings)


def test_the_shortest_line():
    assert line_of([result(), result(lm_loss=4.0, seconds=0.75)]) == (
        " [2025-01-02 03:04:05.000678] iteration       92/     100 | consumed samples:         1472 |"
        " elapsed time per iteration (ms): 500.0 | learning rate: 3.000000E-04 | global batch size:    16 |"
        " lm loss: 3.500000E+00 | loss scale: 1.0 | number of skipped iterations:   0 |"
        " number of nan iterations:   0 | tokens per second: 3200.0 | ETA: 0:00:04 |"
    )


def test_the_longest_line():
    line = line_of([result(grad_norm=1.23456, loss_scale=65536.0, num_zeros=7, params_norm=12.0)], log_throughput=True)
    assert line == (
        " [2025-01-02 03:04:05.000678] iteration       91/     100 | consumed samples:         1456 |"
        " elapsed time per iteration (ms): 250.0 | throughput per GPU (TFLOP/s/GPU): 1.0 |"
        " learning rate: 3.000000E-04 | global batch size:    16 | lm loss: 3.000000E+00 | loss scale: 65536.0 |"
        " grad norm: 1.235 | num zeros: 7 | params norm: 12.000 | number of skipped iterations:   0 |"
        " number of nan iterations:   0 | tokens per second: 6400.0 | ETA: 0:00:02 |"
    )


def test_the_length_of_sequences_is_printed_while_it_changes():
    line = line_of([result(seq_length=32), result(seq_length=64)])
    assert " number of nan iterations:   0 | seq length: 64 | tokens per second: " in line


def test_a_max_z_loss_stands_beside_the_lm_loss():
    line = line_of([result(max_z_loss=0.25), result(max_z_loss=0.125)])
    assert " lm loss: 3.000000E+00 | max-z loss: 1.250000E-01 | loss scale: 1.0 | number of" in line


def test_a_loss_that_is_not_a_number_is_printed():
    assert " lm loss: nan |" in line_of([result(), result(lm_loss=math.nan)])
    assert " lm loss: inf |" in line_of([result(lm_loss=math.inf)])
    assert " number of nan iterations:   1 |" in line_of([result(), result(lm_loss=math.nan)])
    assert " lm loss: -2.000000E+00 |" in line_of([result(lm_loss=-2.0)])


def test_skipped_iterations_count_but_do_not_enter_the_mean_loss():
    line = line_of([result(lm_loss=9.0, skipped=True), result(lm_loss=2.0), result(lm_loss=4.0)])
    assert " lm loss: 3.000000E+00 |" in line
    assert " number of skipped iterations:   1 |" in line


def test_an_interval_without_any_update_still_shows_its_loss():
    assert " lm loss: 9.000000E+00 |" in line_of([result(lm_loss=9.0, skipped=True)])


def test_what_people_grep_with_finds_every_number():
    line = line_of([result(grad_norm=1.0)], log_throughput=True)
    patterns = {
        r"iteration\s+(\d+)/": "91",
        r"elapsed time per iteration \(ms\): ([\d.]+)": "250.0",
        r"lm loss: ([\d.E+-]+)": "3.000000E+00",
        r"grad norm: ([\d.]+)": "1.000",
        r"throughput per GPU \(TFLOP/s/GPU\): ([\d.]+)": "1.0",
    }
    assert {pattern: re.search(pattern, line).group(1) for pattern in patterns} == patterns
    assert "\n" not in line


def test_evaluation_lines():
    line = " validation loss at iteration 10 | lm loss value: 2.000000E+00 | lm loss PPL: 7.389056E+00 | "
    assert evaluation_lines(2.0, "iteration 10") == ["-" * (len(line) + 1), line, "-" * (len(line) + 1)]


def test_the_line_of_the_sources_of_a_blend():
    totals = SourceTotals(np.array([[3, 1], [2, 0], [98304, 0]]))
    assert sources_line(["data/zh", "b"], totals) == (
        " data/zh: 75.00% of samples, lm loss: 7.500000E-01 | b: 25.00% of samples, lm loss: none |"
    )
    assert sources_line(["x"] * 9, SourceTotals.zeros(9)) is None


def test_the_line_of_new_weights():
    decision = Decision(30, 120, (0.25, 0.75), (2.0, None))
    assert decision_line(["a", "b"], decision) == " blend weights after iteration 30: a 0.25, b 0.75"
    many = Decision(30, 120, (0.1,) * 10, (2.0,) * 10)
    assert decision_line(list("abcdefghij"), many).endswith("h 0.1 and 2 more")
