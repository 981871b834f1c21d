"""Why a run stops: each rank votes, the highest vote over all ranks is the reason on every one of them."""

from __future__ import annotations

import os
import signal
import time
from enum import IntEnum
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from megatron_ext.training.metrics import TrainState

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopReason(IntEnum):
    """Ordered so that the maximum over ranks is the reason to give.

    A complete run is complete whatever else holds, unless its last updates were all skipped.
    """

    NONE = 0
    EXIT_INTERVAL = 1
    EXIT_DURATION = 2
    SIGNAL = 3
    COMPLETE = 4
    SKIPPED_UPDATES = 5

    @property
    def saves(self) -> bool:
        """Whether the run leaves a checkpoint behind before it ends.

        After skipped updates it does not: the weights may be what is broken, and the last checkpoint is from before.
        """
        return self not in (StopReason.NONE, StopReason.SKIPPED_UPDATES)

    def describe(self) -> str:
        """The reason as one clause for the log."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    StopReason.NONE: "no reason to stop",
    StopReason.EXIT_INTERVAL: "the iteration is a multiple of --exit-interval",
    StopReason.EXIT_DURATION: "--exit-duration-in-mins is over",
    StopReason.SIGNAL: "a signal asked the run to stop (SIGTERM or SIGUSR1)",
    StopReason.COMPLETE: "all iterations are done",
    StopReason.SKIPPED_UPDATES: "--max-skipped-iterations updates in a row were skipped",
}


class StopSignals:
    """Notes SIGTERM and SIGUSR1 instead of dying from them, for the length of a `with` block on the main thread.

    The handlers that were there come back at the end. A process forked inside the block (a data-loading worker)
    does not share the patience: there the signal does what it does by default, so that the worker can be ended.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._previous: dict[int, Any] = {}
        self._process_id = 0
        self.received: str | None = None

    def __enter__(self) -> StopSignals:
        """Install the handlers."""
        self._process_id = os.getpid()
        if self._enabled:
            self._previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put the handlers back that were there."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number).name


class StopConditions:
    """What may end the run, fixed when it starts.

    Args:
        run: --train-iters, -samples or -tokens, --exit-interval, --exit-duration-in-mins, --max-skipped-iterations.
        start_iteration: where this start of the program began; at least one iteration follows it, so that a run
            resumed at a multiple of --exit-interval goes on.
        started_at: `time.monotonic()` at the start of the program.
        signals: the noted signals.
    """

    def __init__(self, run: RunConfig, start_iteration: int, started_at: float, signals: StopSignals) -> None:
        self._last_iteration = run.total_train_iters
        self._exit_interval = run.train.exit_interval
        self._exit_minutes = run.train.exit_duration_in_mins
        self._max_skipped = run.train.max_skipped_iterations
        self._start_iteration, self._started_at, self._signals = start_iteration, started_at, signals

    def vote(self, state: TrainState) -> StopReason:
        """This rank's reason to stop now; rank-local, so the clock and the signal may differ between ranks.

        The caller agrees on the maximum over all ranks.
        """
        stepped = state.iteration > self._start_iteration
        if stepped and self._max_skipped and state.skipped_in_a_row >= self._max_skipped:
            return StopReason.SKIPPED_UPDATES
        if state.iteration >= self._last_iteration:
            return StopReason.COMPLETE
        if self._signals.received:
            return StopReason.SIGNAL
        if self._exit_minutes and time.monotonic() - self._started_at > self._exit_minutes * 60.0:
            return StopReason.EXIT_DURATION
        if stepped and self._exit_interval and state.iteration % self._exit_interval == 0:
            return StopReason.EXIT_INTERVAL
        return StopReason.NONE
