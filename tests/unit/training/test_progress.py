"""A line on a terminal, silence elsewhere."""

from __future__ import annotations

import io

import pytest

from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def draw(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, enabled: bool = True) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    state, line = TrainState(iteration=50), ProgressLine(enabled, total_iterations=100, start_iteration=50)
    for _ in range(10):
        result = StepResult(2.71828, 1e-3, 4, 4096, 0.5)
        state.advance(result)
        line.update(state, result)
    with line.hidden():
        stream.write("[a log line]")
    line.close()
    return stream.getvalue()


def test_a_terminal_shows_place_loss_speed_and_time_left(monkeypatch: pytest.MonkeyPatch):
    shown = draw(monkeypatch, Terminal())
    assert "60/100" in shown
    assert "loss 2.7183, 8,192 tokens/s" in shown
    assert "<" in shown  # elapsed<left


def test_a_log_line_starts_on_an_empty_line(monkeypatch: pytest.MonkeyPatch):
    before = draw(monkeypatch, Terminal()).split("[a log line]")[0]
    assert before.endswith("\r")
    assert before.split("\r")[-2].strip() == ""


@pytest.mark.parametrize(("stream", "enabled"), [(io.StringIO(), True), (Terminal(), False)])
def test_nothing_in_a_file_or_when_switched_off(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, enabled: bool):
    assert draw(monkeypatch, stream, enabled) == "[a log line]"
