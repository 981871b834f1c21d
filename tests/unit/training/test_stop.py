"""When a run stops, and that a signal is noted by the run and by nothing else."""

from __future__ import annotations

import os
import signal
import time

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.stop import StopConditions, StopReason, StopSignals


def vote(iteration: int, start: int = 0, seconds: float = 0.0, received: str | None = None, **values: object):
    run = RunConfig().with_values(**{"micro_batch_size": 1, "global_batch_size": 4, "train_iters": 10, **values})
    signals = StopSignals()
    signals.received = received
    return StopConditions(run, start, time.monotonic() - seconds, signals).vote(TrainState(iteration, 4 * iteration))


def test_goes_on_until_all_iterations_are_done():
    assert [vote(iteration) for iteration in range(10)] == [StopReason.NONE] * 10
    assert vote(10) == vote(11) == StopReason.COMPLETE


def test_a_length_in_samples_trains_the_whole_batches_that_fit():
    assert vote(9, train_iters=None, train_samples=43) == StopReason.NONE
    assert vote(10, train_iters=None, train_samples=43) == StopReason.COMPLETE


def test_exit_interval_stops_at_its_multiples_but_not_before_a_step():
    assert [vote(i, exit_interval=3) for i in range(7)] == [0, 0, 0, 1, 0, 0, 1]
    assert vote(3, start=3, exit_interval=3) == StopReason.NONE
    assert vote(6, start=3, exit_interval=3) == StopReason.EXIT_INTERVAL


def test_exit_duration():
    assert vote(1, seconds=110, exit_duration_in_mins=2) == StopReason.NONE
    assert vote(1, seconds=130, exit_duration_in_mins=2) == StopReason.EXIT_DURATION
    assert vote(1, seconds=4, exit_duration_in_mins=0.05) == StopReason.EXIT_DURATION


def test_a_signal():
    assert vote(1, received="SIGTERM") == StopReason.SIGNAL


def test_the_maximum_over_ranks_is_the_reason_to_give():
    assert max(vote(3), vote(3, received="SIGTERM"), vote(3, seconds=99, exit_duration_in_mins=1)) == StopReason.SIGNAL
    assert vote(10, received="SIGTERM") == StopReason.COMPLETE


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_can_be_told_and_most_leave_a_checkpoint(reason: StopReason):
    assert reason.describe()
    assert reason.saves == (reason not in (StopReason.NONE, StopReason.SKIPPED_UPDATES))


@pytest.mark.parametrize(
    ("limit", "iteration", "start", "expected"),
    [
        (3, 5, 0, StopReason.SKIPPED_UPDATES),
        (4, 5, 0, StopReason.NONE),
        (0, 5, 0, StopReason.NONE),
        (3, 5, 5, StopReason.NONE),
        (3, 10, 0, StopReason.SKIPPED_UPDATES),
    ],
    ids=["reached", "not yet", "off", "just resumed", "at the end"],
)
def test_skipped_updates_in_a_row(limit: int, iteration: int, start: int, expected: StopReason):
    run = RunConfig().with_values(micro_batch_size=1, train_iters=10, max_skipped_iterations=limit)
    state = TrainState(iteration, 4 * iteration, skipped_iterations=3, skipped_in_a_row=3)
    assert StopConditions(run, start, time.monotonic(), StopSignals()).vote(state) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number: signal.Signals):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("outside"))
    try:
        with StopSignals() as signals:
            assert signals.received is None
            os.kill(os.getpid(), number)
            assert signals.received == number.name
        os.kill(os.getpid(), number)
        assert seen == ["outside"]
        assert signals.received == number.name
    finally:
        signal.signal(number, before)


def test_disabled_means_untouched():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(enabled=False):
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_forked_worker_can_be_ended():
    with StopSignals() as signals:
        ready, says_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(says_ready, b"!")  # a signal before this point would be lost in the fork itself
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert signals.received is None
