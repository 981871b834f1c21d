"""Where a run stands, what a step gave, and the two files that keep every number: metrics.jsonl, validation.jsonl."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from megatron_ext import log
from megatron_ext.errors import MegatronExtError
from megatron_ext.training.source_losses import SourceProgress, SourceTotals

METRICS_FILE = "metrics.jsonl"
VALIDATION_FILE = "validation.jsonl"
MAX_PERPLEXITY_EXPONENT = 20.0


@dataclass
class TrainState:
    """How far a run has come, the same on every rank; all that a resume needs besides the tensors.

    `consumed_samples` names the next sample of the data order. `skipped_samples` are those of iterations whose
    update was skipped (fp16 overflow, no learned token, NaN): the learning-rate schedule does not count them, see
    `schedule_step`. `skipped_in_a_row` are the skipped iterations since the last update.
    Counters run over the whole run, not over one start of the program. `sources` is None without a blend.
    """

    iteration: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    skipped_samples: int = 0
    skipped_iterations: int = 0
    nan_iterations: int = 0
    skipped_in_a_row: int = 0
    sources: SourceProgress | None = None

    @property
    def schedule_step(self) -> int:
        """Position on the learning-rate and weight-decay schedules, in samples that led to an update."""
        return self.consumed_samples - self.skipped_samples

    def advance(self, result: StepResult) -> None:
        """Count one finished iteration."""
        self.iteration += 1
        self.consumed_samples += result.global_batch_size
        self.consumed_tokens += result.num_tokens
        self.skipped_iterations += result.skipped
        self.skipped_samples += result.global_batch_size if result.skipped else 0
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        self.nan_iterations += result.is_nan
        if result.sources is not None:
            self.sources = self.sources or SourceProgress.begin(len(result.sources))
            self.sources.add(result.sources)

    @property
    def order_has_changed(self) -> bool:
        """The last iteration ended with new weights of the blend, so what was read ahead is of the old order."""
        decisions = self.sources.decisions if self.sources else []
        return bool(decisions) and decisions[-1].consumed_samples == self.consumed_samples

    def to_dict(self) -> dict[str, int]:
        """The counters by name, for a checkpoint; `sources` has a place of its own there."""
        return {name: value for name, value in vars(self).items() if name != "sources"}

    @classmethod
    def from_dict(cls, counters: dict[str, int]) -> TrainState:
        """The state that `to_dict` gave; counters that an older release did not write start at zero."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: int(value) for name, value in counters.items() if name in known})


@dataclass(frozen=True)
class StepResult:
    """What one iteration gave; the same numbers on every rank.

    Attributes:
        lm_loss: mean loss per counted token of the global batch; NaN or inf when it was not finite.
        learning_rate: the rate that this iteration's update used.
        global_batch_size: samples of this iteration.
        num_tokens: tokens of this iteration over all ranks (global_batch_size * seq_length).
        seconds: wall time of the iteration, evaluation and checkpoints left out.
        grad_norm: global L2 norm before clipping, NaN or inf when it was not finite; None where none was computed.
        loss_scale: fp16 loss scale; None means 1.
        skipped: the update was left out (fp16 overflow, no learned token in the batch, a loss or gradient not finite).
        params_norm: L2 norm of all parameters, with --log-params-norm.
        num_zeros: zeros among all gradients, with --log-num-zeros-in-grad.
        sources: samples, tokens and loss of each source of a blend; None without one.
        max_z_loss: mean over counted tokens of what the max-z loss adds to the gradient's loss; None without it.
        seq_length: length of the iteration's sequences, tokens, with --seq-length-warmup; else --seq-length.
    """

    lm_loss: float
    learning_rate: float
    global_batch_size: int
    num_tokens: int
    seconds: float
    grad_norm: float | None = None
    loss_scale: float | None = None
    skipped: bool = False
    params_norm: float | None = None
    num_zeros: int | None = None
    seq_length: int | None = None
    sources: SourceTotals | None = None
    max_z_loss: float | None = None

    @property
    def is_nan(self) -> bool:
        """The loss or the gradient is NaN or infinite; a scaled fp16 gradient that overflows is not meant."""
        return not math.isfinite(self.lm_loss) or not math.isfinite(self.grad_norm or 0.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all ranks."""
        return self.num_tokens / self.seconds if self.seconds > 0 else 0.0


def perplexity(lm_loss: float) -> float:
    """exp(loss), with the exponent held at 20 as Megatron-LM does, so that early values stay printable; NaN of NaN."""
    return lm_loss if math.isnan(lm_loss) else math.exp(min(MAX_PERPLEXITY_EXPONENT, lm_loss))


def step_record(state: TrainState, result: StepResult, tflops_per_rank: float) -> dict[str, Any]:
    """The line of metrics.jsonl for the iteration that `state` has just counted."""
    warm_up = {} if result.seq_length is None else {"seq_length": result.seq_length}
    max_z = {} if result.max_z_loss is None else {"max_z_loss": result.max_z_loss}
    return {
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "consumed_tokens": state.consumed_tokens,
        "lm_loss": result.lm_loss,
        "grad_norm": result.grad_norm,
        "learning_rate": result.learning_rate,
        "global_batch_size": result.global_batch_size,
        "iteration_time_s": result.seconds,
        "tokens_per_s": result.tokens_per_s,
        "tflops_per_rank": tflops_per_rank,
        **warm_up,
        **max_z,
    }


def evaluation_record(state: TrainState, lm_loss: float) -> dict[str, Any]:
    """The line of validation.jsonl for an evaluation made after the iteration that `state` counts last."""
    return {
        "iteration": state.iteration,
        "consumed_samples": state.consumed_samples,
        "lm_loss": lm_loss,
        "perplexity": perplexity(lm_loss),
    }


def encode_record(record: dict[str, Any]) -> str:
    """One JSON line in which every finite float reads back bit for bit.

    JSON has no NaN: such a value becomes null beside `NAME_is_nan: true`, an infinity null beside `NAME_is_inf: true`.
    """
    encoded: dict[str, Any] = {}
    for name, value in record.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        encoded[name] = value if finite else None
        if not finite:
            encoded[f"{name}_is_nan" if math.isnan(value) else f"{name}_is_inf"] = True
    return json.dumps(encoded, allow_nan=False) + "\n"


class MetricsFile:
    """A file of JSON lines that holds each iteration once, over any number of kills and resumes.

    Opening it at `start_iteration` takes out what an earlier life wrote beyond that iteration, and a line torn by a
    kill. A run that starts from nothing moves another run's file to NAME.previous. A line reaches the operating
    system as it is written, so a SIGKILL loses none; without a line no file appears. One rank only.
    """

    def __init__(self, path: Path, start_iteration: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if start_iteration == 0 and path.exists() and path.stat().st_size:
            os.replace(path, path.with_name(path.name + ".previous"))
        elif path.exists():
            _drop_lines_after(path, start_iteration)
        self._path = path
        self._last_iteration = max((record["iteration"] for record in read_records(path)), default=-1)
        self._file: TextIO | None = None

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; a second one for the same iteration is left out (the law is: each iteration once)."""
        if record["iteration"] <= self._last_iteration:
            return
        if self._file is None:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self._file.write(encode_record(record))
        self._last_iteration = record["iteration"]

    def close(self) -> None:
        """Close the file; every line is already written."""
        if self._file is not None:
            self._file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON-lines file in file order; a torn last line and a missing file count as nothing.

    Raises:
        MegatronExtError: a line before the last is not a record with an iteration; the message names it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        record = _decode(line)
        if record is None and number < len(lines):
            raise MegatronExtError(
                f"{path}, line {number} is not a record: {line[:60]!r}",
                "every line but the last (which a kill may tear) is one JSON object with an iteration",
                "take the line out, or move the file away",
            )
        if record is not None:
            records.append(record)
    return records


def _decode(line: bytes) -> dict[str, Any] | None:
    """The record on a complete line, or None."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("iteration"), int) else None


def _drop_lines_after(path: Path, iteration: int) -> None:
    """Rewrite `path` atomically without the lines beyond `iteration` and without unreadable ones."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = list(_lines_up_to(lines, iteration))
    if len(kept) == len(lines):
        return
    beside = path.with_name(path.name + ".partial")
    with beside.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    log.info_any_rank(f"{path}: kept {len(kept)} lines up to iteration {iteration}, took out {len(lines) - len(kept)}")


def _lines_up_to(lines: list[bytes], iteration: int) -> Iterator[bytes]:
    for line in lines:
        record = _decode(line)
        if record is not None and record["iteration"] <= iteration:
            yield line
