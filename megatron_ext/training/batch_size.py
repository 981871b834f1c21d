"""The global batch size as a function of consumed samples, and iterations <-> samples; pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_ext.errors import ConfigError

if TYPE_CHECKING:
    from megatron_ext.config import TrainConfig


def global_batch_size_at(train: TrainConfig, consumed_samples: int) -> int:
    """Samples of the iteration that starts after `consumed_samples` samples.

    Without --rampup-batch-size it is --global-batch-size. With `START INCREMENT SAMPLES` the batch grows in
    n = (global - START) / INCREMENT equal stretches of SAMPLES / n consumed samples, one INCREMENT each.

    Source: megatron-core 0.16.1, num_microbatches_calculator.py, value for value.
    """
    if not train.rampup_batch_size:
        return train.global_batch_size
    start, increment, ramp_samples = train.rampup_batch_size
    num_increments = (train.global_batch_size - start) // increment
    if consumed_samples > ramp_samples or num_increments == 0 or ramp_samples == 0:
        return train.global_batch_size
    steps = int(consumed_samples / (ramp_samples / num_increments))
    return min(train.global_batch_size, start + steps * increment)


def batch_sizes(train: TrainConfig) -> list[int]:
    """Every global batch size that the run can use, ascending; each must be a multiple of micro batch * dp."""
    if not train.rampup_batch_size:
        return [train.global_batch_size]
    start, increment, _ = train.rampup_batch_size
    return [*range(start, train.global_batch_size, increment), train.global_batch_size]


def num_microbatches_at(train: TrainConfig, consumed_samples: int, data_parallel_size: int) -> int:
    """Micro-batches per data-parallel rank of the iteration that starts after `consumed_samples` samples.

    Raises:
        ConfigError: the batch does not divide by --micro-batch-size times `data_parallel_size`.
    """
    batch = global_batch_size_at(train, consumed_samples)
    at_once = train.micro_batch_size * data_parallel_size
    if batch % at_once:
        raise ConfigError(
            f"global batch size {batch} (after {consumed_samples} samples) does not divide evenly",
            f"it must be a multiple of --micro-batch-size {train.micro_batch_size} x data-parallel size "
            f"{data_parallel_size} = {at_once}",
            "change --global-batch-size, --rampup-batch-size or --micro-batch-size",
        )
    return batch // at_once


def iterations_to_samples(train: TrainConfig, iterations: int) -> int:
    """Samples that the first `iterations` iterations consume, ramp-up included."""
    ramp_iterations, consumed = _ramp_up(train, max_iterations=iterations)
    return consumed + (iterations - ramp_iterations) * train.global_batch_size


def samples_to_iterations(train: TrainConfig, samples: int) -> int:
    """Iterations whose whole global batches fit into `samples`; a partial last batch is not trained on."""
    iterations, consumed = _ramp_up(train, max_samples=samples)
    rest = samples - consumed
    if rest < global_batch_size_at(train, consumed):
        return iterations
    return iterations + rest // train.global_batch_size


def total_iterations(train: TrainConfig) -> int:
    """The iteration at which the run is complete: --train-iters, or what fits into --train-samples; else 0."""
    if train.train_iters is not None:
        return train.train_iters
    return samples_to_iterations(train, train.train_samples) if train.train_samples is not None else 0


def total_samples(train: TrainConfig) -> int:
    """Samples that the whole run consumes, exactly: the training samples to ask the data for."""
    return iterations_to_samples(train, total_iterations(train))


def _ramp_up(train: TrainConfig, max_iterations: int | None = None, max_samples: int | None = None) -> tuple[int, int]:
    """Iterations and samples of the ramp-up, cut where a further iteration would pass a limit."""
    iterations = consumed = 0
    while (batch := global_batch_size_at(train, consumed)) < train.global_batch_size:
        if iterations == max_iterations or (max_samples is not None and consumed + batch > max_samples):
            break
        iterations += 1
        consumed += batch
    return iterations, consumed
