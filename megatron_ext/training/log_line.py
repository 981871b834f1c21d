"""The console lines: Megatron-LM's fields, in its order and formats, since people grep for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from megatron_ext.training.metrics import StepResult, TrainState, perplexity
from megatron_ext.training.source_losses import Decision, SourceTotals

MAX_SOURCES = 8
"""Sources that a console line can hold."""


@dataclass
class Interval:
    """Sums over the iterations since the last line; the averages are Megatron-LM's."""

    iterations: int = 0
    skipped: int = 0
    nan: int = 0
    loss_of_updates: float = 0.0
    loss_of_all: float = 0.0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    flops: int = 0

    def add(self, result: StepResult, flops: int) -> None:
        """Count one iteration that took `flops` model operations over all ranks."""
        self.iterations += 1
        self.skipped += result.skipped
        self.nan += result.is_nan
        self.loss_of_updates += 0.0 if result.skipped else result.lm_loss
        self.loss_of_all += result.lm_loss
        self.seconds += result.seconds
        self.samples += result.global_batch_size
        self.tokens += result.num_tokens
        self.flops += flops

    @property
    def lm_loss(self) -> float:
        """Mean loss of the iterations that made an update; of all of them where none did."""
        updates = self.iterations - self.skipped
        return self.loss_of_updates / updates if updates else self.loss_of_all / max(1, self.iterations)

    @property
    def seconds_per_iteration(self) -> float:
        """Mean wall time of an iteration."""
        return self.seconds / max(1, self.iterations)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all ranks."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class LineSettings:
    """What does not change from line to line.

    Attributes:
        total_iterations: the last iteration of the run.
        total_samples: samples of the whole run, for the time that is left.
        world_size: number of ranks.
        log_throughput: print TFLOP/s per rank.
    """

    total_iterations: int
    total_samples: int
    world_size: int
    log_throughput: bool


def training_line(at: datetime, state: TrainState, interval: Interval, last: StepResult, settings: LineSettings) -> str:
    """The line of Megatron-LM's `training_log`, then our own fields: tokens per second and the time left.

    With --seq-length-warmup the length of the last iteration's sequences stands before them.
    Loss and time are means over the interval; rate, batch size, scale and norms are those of its last iteration.
    A loss that is not a number is printed as `nan` (Megatron-LM leaves the field out).

    Source: Megatron-LM core_v0.19.0, megatron/training/training.py, `training_log`.
    """
    fields = _megatron_fields(at, state, interval, last, settings)
    if last.seq_length is not None:
        fields.append(f" seq length: {last.seq_length}")
    fields.append(f" tokens per second: {interval.tokens_per_s:.1f}")
    fields.append(f" ETA: {time_left(state, interval, settings)}")
    return "".join(f"{field} |" for field in fields)


def sources_line(names: Sequence[str], totals: SourceTotals) -> str | None:
    """Share and loss of each source since the last line; None for more sources than a line can hold."""
    if len(names) > MAX_SOURCES:
        return None
    return "".join(
        f" {name}: {share:.2%} of samples, lm loss: {'none' if loss is None else _scientific(loss)} |"
        for name, share, loss in zip(names, totals.shares, totals.losses, strict=True)
    )


def decision_line(names: Sequence[str], decision: Decision) -> str:
    """New weights of the blend, those of the first sources."""
    shown = list(zip(names, decision.weights, strict=True))[:MAX_SOURCES]
    weights = ", ".join(f"{name} {weight:g}" for name, weight in shown)
    more = "" if len(names) == len(shown) else f" and {len(names) - len(shown)} more"
    return f" blend weights after iteration {decision.iteration}: {weights}{more}"


def evaluation_lines(lm_loss: float, at: str) -> list[str]:
    """Megatron-LM's three lines of an evaluation, framed by dashes.

    Args:
        lm_loss: mean loss per token.
        at: when and on what, as in `iteration 100` or `iteration 100 on test set`.
    """
    line = f" validation loss at {at} | lm loss value: {lm_loss:.6E} | lm loss PPL: {perplexity(lm_loss):.6E} | "
    dashes = "-" * (len(line) + 1)
    return [dashes, line, dashes]


def time_left(state: TrainState, interval: Interval, settings: LineSettings) -> timedelta:
    """Time to the end of the run at the interval's speed in samples, to the second."""
    left = max(0, settings.total_samples - state.consumed_samples)
    return timedelta(seconds=round(left * interval.seconds / max(1, interval.samples)))


def _megatron_fields(
    at: datetime, state: TrainState, interval: Interval, last: StepResult, settings: LineSettings
) -> list[str]:
    seconds = interval.seconds_per_iteration
    fields = [
        f" [{at:%Y-%m-%d %H:%M:%S.%f}] iteration {state.iteration:8d}/{settings.total_iterations:8d}",
        f" consumed samples: {state.consumed_samples:12d}",
        f" elapsed time per iteration (ms): {seconds * 1000.0:.1f}",
    ]
    if settings.log_throughput:
        tflops = interval.flops / (max(interval.seconds, 1e-9) * 1e12 * settings.world_size)
        fields.append(f" throughput per GPU (TFLOP/s/GPU): {tflops:.1f}")
    fields += [
        f" learning rate: {last.learning_rate:.6E}",
        f" global batch size: {last.global_batch_size:5d}",
        f" lm loss: {_scientific(interval.lm_loss)}",
        f" loss scale: {1.0 if last.loss_scale is None else last.loss_scale:.1f}",
    ]
    if last.max_z_loss is not None:
        fields.insert(-1, f" max-z loss: {_scientific(last.max_z_loss)}")
    if last.grad_norm is not None:
        fields.append(f" grad norm: {last.grad_norm:.3f}")
    if last.num_zeros is not None:
        fields.append(f" num zeros: {last.num_zeros}")
    if last.params_norm is not None:
        fields.append(f" params norm: {last.params_norm:.3f}")
    return [
        *fields,
        f" number of skipped iterations: {interval.skipped:3d}",
        f" number of nan iterations: {interval.nan:3d}",
    ]


def _scientific(value: float) -> str:
    return f"{value:.6E}" if math.isfinite(value) else str(value)
