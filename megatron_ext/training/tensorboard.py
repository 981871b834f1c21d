"""TensorBoard scalars under Megatron-LM's tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_ext.training.metrics import StepResult, TrainState, perplexity
from megatron_ext.training.source_losses import SourceTotals

MAX_SOURCES = 64
"""Sources that have scalars of their own: a page of thousands of charts helps nobody."""


class TensorBoardWriter:
    """Writes scalars that a resumed run continues without a second value for any step; one rank only.

    Series over iterations go to `directory`, Megatron-LM's "... vs samples" series to `directory`/vs_samples:
    TensorBoard takes out what a killed run wrote beyond the resume point per folder and by one step number, which
    cannot mean iterations and samples at once.
    """

    def __init__(self, directory: Path, start: TrainState) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second or more: only where it is used

        self._by_iteration = SummaryWriter(str(directory), purge_step=start.iteration + 1, flush_secs=10)
        self._by_samples = SummaryWriter(
            str(Path(directory) / "vs_samples"), purge_step=start.consumed_samples + 1, flush_secs=10
        )

    def write_step(self, state: TrainState, result: StepResult, tflops_per_rank: float) -> None:
        """Write the scalars of the iteration that `state` has just counted."""
        for tag, value in (
            ("learning-rate", result.learning_rate),
            ("batch-size", result.global_batch_size),
            ("lm loss", result.lm_loss),
            ("max-z loss", result.max_z_loss),
            ("loss-scale", result.loss_scale),
            ("grad-norm", result.grad_norm),
            ("num-zeros", result.num_zeros),
            ("params-norm", result.params_norm),
            ("seq-length", result.seq_length),
        ):
            if value is not None:
                self._write_both(tag, value, state)
        self._by_iteration.add_scalar("iteration-time", result.seconds, state.iteration)
        self._by_iteration.add_scalar("throughput", tflops_per_rank, state.iteration)
        self._by_iteration.add_scalar("tokens-per-s", result.tokens_per_s, state.iteration)

    def write_evaluation(self, state: TrainState, lm_loss: float, split: str) -> None:
        """Write loss and perplexity of an evaluation; `split` is `validation` or `test`."""
        self._write_both(f"lm loss {split}", lm_loss, state)
        self._write_both(f"lm loss {split} ppl", perplexity(lm_loss), state)

    def write_sources(self, state: TrainState, names: Sequence[str], totals: SourceTotals) -> None:
        """Write loss and share of each source in the interval that ends with `state`; of at most 64 sources."""
        for name, loss, share in list(zip(names, totals.losses, totals.shares, strict=True))[:MAX_SOURCES]:
            if loss is not None:
                self._write_both(f"lm loss {name}", loss, state)
            self._write_both(f"share {name}", share, state)

    def close(self) -> None:
        """Write out what is queued."""
        self._by_iteration.close()
        self._by_samples.close()

    def _write_both(self, tag: str, value: float, state: TrainState) -> None:
        self._by_iteration.add_scalar(tag, value, state.iteration)
        self._by_samples.add_scalar(f"{tag} vs samples", value, state.consumed_samples)
