"""Batch sizes against megatron-core's calculator, and sums against going through the run step by step."""

from __future__ import annotations

import itertools
import random

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.training.batch_size import iterations_to_samples, samples_to_iterations, total_samples

RAMPS = [(16, (4, 4, 100)), (64, (8, 8, 1000)), (96, (32, 16, 777)), (12, (3, 3, 10)), (1024, (16, 16, 12345))]


def run_of(batch: int, ramp: tuple[int, int, int] | None = None, **values: object) -> RunConfig:
    return RunConfig().with_values(micro_batch_size=1, global_batch_size=batch, rampup_batch_size=ramp, **values)


def sizes(run: RunConfig) -> itertools.accumulate:
    """Samples consumed before iteration 1, 2, 3, ..."""
    return itertools.accumulate(
        itertools.repeat(None), lambda done, _: done + run.global_batch_size_at(done), initial=0
    )


@pytest.mark.parametrize(("batch", "ramp"), RAMPS)
def test_ramp_up_is_megatron_cores(batch: int, ramp: tuple[int, int, int]):
    from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

    oracle = RampupBatchsizeNumMicroBatchesCalculator(batch, 1, 1, False, 1, *ramp)
    run = run_of(batch, ramp)
    for consumed in range(2 * ramp[2] + batch):
        oracle.update(consumed, consistency_check=True)
        assert run.global_batch_size_at(consumed) == oracle.get_current_global_batch_size()
        assert run.num_microbatches_at(consumed) == oracle.get()


@pytest.mark.parametrize(("batch", "ramp"), [*RAMPS, (24, None)])
def test_samples_of_n_iterations_are_what_going_through_them_gives(batch: int, ramp: tuple[int, int, int] | None):
    run = run_of(batch, ramp)
    for iterations, consumed in zip(range(600), sizes(run), strict=False):
        assert iterations_to_samples(run, iterations) == consumed


@pytest.mark.parametrize(("batch", "ramp"), [*RAMPS, (24, None)])
def test_only_whole_batches_that_fit_are_counted(batch: int, ramp: tuple[int, int, int] | None):
    run, generator = run_of(batch, ramp), random.Random(batch)
    for samples in [0, 1, batch - 1, batch, *(generator.randrange(20_000) for _ in range(300))]:
        iterations = samples_to_iterations(run, samples)
        assert iterations_to_samples(run, iterations) <= samples < iterations_to_samples(run, iterations + 1)


@pytest.mark.parametrize(("batch", "ramp"), [*RAMPS, (24, None)])
def test_the_end_of_a_run_is_the_same_from_both_sides(batch: int, ramp: tuple[int, int, int] | None):
    for samples in (batch, 500, 5_000, 50_001):
        run = run_of(batch, ramp, train_samples=samples)
        assert run.total_train_iters == samples_to_iterations(run, samples)
        assert total_samples(run) <= samples < total_samples(run) + batch


def test_length_by_iterations():
    assert total_samples(run_of(24, train_iters=10)) == 240
    assert total_samples(run_of(16, (8, 8, 16), train_iters=4)) == 8 + 8 + 16 + 16
