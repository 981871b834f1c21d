"""One progress line on a terminal; nothing at all where stderr is a file or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from megatron_ext.training.metrics import StepResult, TrainState


class ProgressLine:
    """Share done, time left, loss and tokens/s, redrawn in place on stderr.

    Args:
        enabled: False where the user said --no-progress or another rank logs.
        total_iterations: the last iteration of the run.
        start_iteration: where this start of the program began.
    """

    def __init__(self, enabled: bool, total_iterations: int, start_iteration: int) -> None:
        self._bar: Any = None
        if enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_iterations,
                initial=start_iteration,
                desc="train",
                unit="it",
                dynamic_ncols=True,
                leave=False,
            )

    def update(self, state: TrainState, result: StepResult) -> None:
        """Show the iteration that `state` has just counted."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {result.lm_loss:.4f}, {result.tokens_per_s:,.0f} tokens/s", refresh=False)
            self._bar.update(state.iteration - self._bar.n)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the line off the terminal while another line is printed."""
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
