"""Everything that happens after a step, in the one order in which it happens.

To do something every n iterations, add a hook here and put it in its place in `build_hooks`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext import log
from megatron_ext.training.batch_size import total_samples
from megatron_ext.training.flops import model_flops_per_step, tflops_per_rank
from megatron_ext.training.log_line import (
    Interval,
    LineSettings,
    decision_line,
    evaluation_lines,
    sources_line,
    training_line,
)
from megatron_ext.training.metrics import (
    METRICS_FILE,
    MetricsFile,
    StepResult,
    TrainState,
    evaluation_record,
    step_record,
)
from megatron_ext.training.progress import ProgressLine
from megatron_ext.training.source_losses import (
    SOURCES_FILE,
    WEIGHTS_FILE,
    Decision,
    SourceTotals,
    distinct_names,
    sources_record,
)
from megatron_ext.training.tensorboard import TensorBoardWriter

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig
    from megatron_ext.training.profile import Profile


@dataclass(frozen=True)
class StepContext:
    """What a hook sees: the state after the step was counted, and what the step gave."""

    state: TrainState
    result: StepResult


Hook = Callable[[StepContext], None]


@dataclass(frozen=True)
class HookParts:
    """What the hooks are made from.

    Attributes:
        run: the resolved configuration.
        start: the state in which this start of the program begins.
        vocab_rows: rows of the output layer, padding included (for TFLOP/s).
        is_logging_rank: true on the one rank that prints and writes files (the last one, as in Megatron-LM).
        evaluate: mean validation loss per token now; collective, called on every rank; None without a validation set.
        save: writes a checkpoint now; collective, called on every rank; None without --save.
        sources: the datasets that training samples come from.
        reweight: decides on the weights of the blend now; collective, called on every rank; None to leave them.
        profile: times the hooks and the steps between them; None to leave it.
        sample_ids: ids of the step's global batch; collective, called on every rank; None without --log-sample-ids.
    """

    run: RunConfig
    start: TrainState
    vocab_rows: int
    is_logging_rank: bool
    evaluate: Callable[[TrainState], float] | None = None
    save: Callable[[TrainState], None] | None = None
    sample_ids: Callable[[], list[int]] | None = None
    sources: tuple[str, ...] = ()
    reweight: Callable[[TrainState], Decision] | None = None
    profile: Profile | None = None

    def flops(self, result: StepResult) -> int:
        """Model operations of a step over all ranks."""
        seq_length = result.seq_length or self.run.train.seq_length
        return model_flops_per_step(self.run.model, self.vocab_rows, result.num_tokens, seq_length)

    def tflops_per_rank(self, result: StepResult) -> float:
        """TFLOP/s per rank of a step."""
        return tflops_per_rank(self.flops(result), result.seconds, self.run.world_size)


class Outputs:
    """The files and lines of the logging rank; on every other rank each method does nothing.

    Opening them takes what a killed life of this run wrote beyond `parts.start` out of the files, so with
    --skip-train, which only looks at a checkpoint, no file is opened.

    Args:
        parts: what the hooks are made from.
    """

    def __init__(self, parts: HookParts) -> None:
        run, start, self._prints = parts.run, parts.start, parts.is_logging_rank
        writes = parts.is_logging_rank and not run.train.skip_train
        save = Path(run.checkpoint.save) if writes and run.checkpoint.save else None
        self.metrics = MetricsFile(save / METRICS_FILE, start.iteration) if save else None
        self.evaluations = {
            split: MetricsFile(save / f"{split}.jsonl", start.iteration) for split in ("validation", "test") if save
        }
        self.names = distinct_names(parts.sources)
        self.sources = MetricsFile(save / SOURCES_FILE, start.iteration) if save else None
        self.decisions = MetricsFile(save / WEIGHTS_FILE, start.iteration) if save else None
        if self.decisions is not None and start.sources is not None:
            for decision in start.sources.decisions:  # a folder of its own tells them too
                self.decisions.append(decision.to_record())
        log_sample_ids = run.logging.log_sample_ids if writes else None
        self.sample_ids = MetricsFile(Path(log_sample_ids), start.iteration) if log_sample_ids else None
        tensorboard = run.logging.tensorboard_dir if writes else None
        self.tensorboard = TensorBoardWriter(Path(tensorboard), start) if tensorboard else None
        self.progress = ProgressLine(writes and run.logging.progress, run.total_train_iters, start.iteration)

    def print_line(self, line: str) -> None:
        """Print a line on the logging rank, above the progress line."""
        if self._prints:
            self.print_line_of_any_rank(line)

    def print_line_of_any_rank(self, line: str) -> None:
        """Print a line on the calling rank, above the progress line where there is one."""
        with self.progress.hidden():
            log.info_any_rank(line)

    def report_evaluation(self, state: TrainState, lm_loss: float, split: str = "validation") -> None:
        """Print an evaluation and keep it in SPLIT.jsonl and TensorBoard; `split` is `validation` or `test`."""
        at = f"iteration {state.iteration}" + ("" if split == "validation" else f" on {split} set")
        for line in evaluation_lines(lm_loss, at):
            self.print_line(line)
        if split in self.evaluations:
            self.evaluations[split].append(evaluation_record(state, lm_loss))
        if self.tensorboard is not None:
            self.tensorboard.write_evaluation(state, lm_loss, split)

    def report_sources(self, state: TrainState, totals: SourceTotals) -> None:
        """Print shares and losses of the sources of a blend and keep them in sources.jsonl and TensorBoard."""
        line = sources_line(self.names, totals)
        if line is not None:
            self.print_line(line)
        if self.sources is not None:
            place = {"iteration": state.iteration, "consumed_samples": state.consumed_samples}
            self.sources.append(sources_record(place, self.names, totals))
        if self.tensorboard is not None:
            self.tensorboard.write_sources(state, self.names, totals)

    def report_decision(self, decision: Decision) -> None:
        """Print new weights of the blend and keep them in blend_weights.jsonl."""
        self.print_line(decision_line(self.names, decision))
        if self.decisions is not None:
            self.decisions.append(decision.to_record())

    def close(self) -> None:
        """Finish every file; the progress line goes away."""
        files = (self.metrics, self.sample_ids, self.sources, self.decisions, *self.evaluations.values())
        for output in (*files, self.tensorboard, self.progress):
            if output is not None:
                output.close()


def build_hooks(parts: HookParts, outputs: Outputs) -> list[Hook]:
    """The hooks of this rank, to be called in this order after every step; collective ones are on every rank."""
    hooks: list[Hook | None] = []
    if parts.is_logging_rank:
        hooks += [log_line_hook(parts, outputs), metrics_hook(parts, outputs), tensorboard_hook(parts, outputs)]
        hooks += [lambda context: outputs.progress.update(context.state, context.result)]
    hooks += [sources_hook(parts, outputs), reweight_hook(parts, outputs), sample_ids_hook(parts, outputs)]
    hooks += [evaluation_hook(parts, outputs), checkpoint_hook(parts), garbage_collection_hook(parts.run)]
    kept = [hook for hook in hooks if hook is not None]
    if parts.profile is None:
        return kept
    return parts.profile.observe(kept, parts.start.iteration, outputs.print_line_of_any_rank)


def log_line_hook(parts: HookParts, outputs: Outputs) -> Hook:
    """Print Megatron-LM's line every --log-interval iterations."""
    run = parts.run
    settings = LineSettings(run.total_train_iters, total_samples(run), run.world_size, run.logging.log_throughput)
    interval = Interval()

    def print_training_line(context: StepContext) -> None:
        nonlocal interval
        interval.add(context.result, parts.flops(context.result))
        if context.state.iteration % run.logging.log_interval == 0:
            outputs.print_line(training_line(datetime.now(), context.state, interval, context.result, settings))
            interval = Interval()

    return print_training_line


def metrics_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Append every iteration to metrics.jsonl."""
    metrics = outputs.metrics
    if metrics is None:
        return None
    return lambda context: metrics.append(
        step_record(context.state, context.result, parts.tflops_per_rank(context.result))
    )


def sources_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Report shares and losses of the sources of a blend every --log-interval iterations; every rank counts anew."""
    if len(parts.sources) < 2:
        return None

    def report(context: StepContext) -> None:
        state = context.state
        if state.iteration % parts.run.logging.log_interval == 0 and state.sources is not None:
            outputs.report_sources(state, state.sources.take_report())

    return report


def reweight_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Change the weights of the blend every --blend-reweight-interval iterations; collective, before the checkpoint."""
    reweight, interval = parts.reweight, parts.run.data.blend_reweight_interval
    if reweight is None or interval is None:
        return None

    def decide(context: StepContext) -> None:
        if context.state.iteration % interval == 0:
            outputs.report_decision(reweight(context.state))

    return decide


def sample_ids_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Append the sample ids of every iteration to the file of --log-sample-ids; collective."""
    gathered = parts.sample_ids
    if gathered is None:
        return None

    def log_sample_ids(context: StepContext) -> None:
        record = {"iteration": context.state.iteration, "sample_ids": gathered()}
        if outputs.sample_ids is not None:
            outputs.sample_ids.append(record)

    return log_sample_ids


def tensorboard_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Write scalars every --tensorboard-log-interval iterations."""
    writer, interval = outputs.tensorboard, parts.run.logging.tensorboard_log_interval
    if writer is None:
        return None

    def write_scalars(context: StepContext) -> None:
        if context.state.iteration % interval == 0:
            writer.write_step(context.state, context.result, parts.tflops_per_rank(context.result))

    return write_scalars


def evaluation_hook(parts: HookParts, outputs: Outputs) -> Hook | None:
    """Evaluate on the validation split every --eval-interval iterations; collective."""
    evaluate, interval = parts.evaluate, parts.run.train.eval_interval
    if evaluate is None or not interval:
        return None

    def evaluate_and_report(context: StepContext) -> None:
        if context.state.iteration % interval == 0:
            outputs.report_evaluation(context.state, evaluate(context.state))

    return evaluate_and_report


def checkpoint_hook(parts: HookParts) -> Hook | None:
    """Save every --save-interval iterations; collective. After all other outputs, so that a resume finds them.

    Not after an iteration whose loss or gradient was no number: the weights may be the reason, and checkpoints of them
    would push out good ones interval by interval. The one save at the end of a run is made all the same.
    """
    save, interval = parts.save, parts.run.checkpoint.save_interval
    if save is None or not interval:
        return None

    def save_checkpoint(context: StepContext) -> None:
        if context.state.iteration % interval:
            return
        if context.result.is_nan:
            log.warn(f"no checkpoint of iteration {context.state.iteration}: its loss or gradient was not finite")
        else:
            save(context.state)

    return save_checkpoint


def garbage_collection_hook(run: RunConfig) -> Hook | None:
    """With --manual-gc, collect on all ranks at the same iteration, so that they do not wait for each other in turn."""
    interval = run.train.manual_gc_interval
    if not run.train.manual_gc:
        return None
    gc.disable()
    gc.collect()

    def collect(context: StepContext) -> None:
        if interval and context.state.iteration % interval == 0:
            gc.collect()

    return collect
