"""Iterations <-> samples under a batch ramp-up; pure arithmetic over `RunConfig.global_batch_size_at`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig


def iterations_to_samples(run: RunConfig, iterations: int) -> int:
    """Samples that the first `iterations` iterations consume, exactly, ramp-up included."""
    ramp_iterations, consumed = _ramp_up(run, max_iterations=iterations)
    return consumed + (iterations - ramp_iterations) * run.global_batch_size


def samples_to_iterations(run: RunConfig, samples: int) -> int:
    """Iterations whose whole global batches fit into `samples`; a partial last batch is not trained on."""
    iterations, consumed = _ramp_up(run, max_samples=samples)
    still_ramping = run.global_batch_size_at(consumed) < run.global_batch_size
    return iterations if still_ramping else iterations + (samples - consumed) // run.global_batch_size


def total_samples(run: RunConfig) -> int:
    """Samples that the whole run consumes: the number of training samples to ask the data for."""
    return iterations_to_samples(run, run.total_train_iters)


def _ramp_up(run: RunConfig, max_iterations: int | None = None, max_samples: int | None = None) -> tuple[int, int]:
    """Iterations and samples of the ramp-up, cut where a further iteration would pass a limit."""
    iterations = consumed = 0
    while (batch := run.global_batch_size_at(consumed)) < run.global_batch_size:
        if iterations == max_iterations or (max_samples is not None and consumed + batch > max_samples):
            break
        iterations += 1
        consumed += batch
    return iterations, consumed
