"""Progress lines come at the interval asked for, with Megatron-LM's beginning, and tell what is left."""

from __future__ import annotations

import re

import pytest

from megatron_ext.data.preprocessing import reporter as module
from megatron_ext.data.preprocessing.reporter import Reporter, duration


class Clock:
    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(module, "time", Clock)
    Clock.now = 0.0
    return Clock


def test_a_line_each_interval_and_none_between(clock: type[Clock], capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(None, 100)
    for documents in (50, 99, 100, 130, 199, 420, 430, 530):
        clock.now += module.SECONDS_BETWEEN_LINES
        reporter.update(documents, 0, documents * 10, documents * 5)
    reporter.close()
    lines = capsys.readouterr().out.splitlines()
    counts = [int(re.match(r"Processed (\d+) documents \([\d.]+ docs/s, ", line).group(1)) for line in lines]
    assert counts == [100, 420, 530]
    assert lines[-1].endswith("2650 tokens.")


def test_a_fast_run_does_not_fill_the_log(clock: type[Clock], capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(None, 1)
    for documents in range(1, 1001):
        clock.now += 0.011
        reporter.update(documents, 0, 0, 0)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_time_left_comes_from_the_bytes_of_this_run(clock: type[Clock], capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(1000, 1, done_bytes=500)
    clock.now = 10.0
    reporter.update(5, 600, 200, 9)  # 100 of the 500 bytes that were left, in 10 s
    assert "60 % of the input, 40 s left." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (18600, "5 h 10 min"), (-1, "0 s")]
)
def test_durations_read_well(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_terminal_gets_a_bar_instead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    reporter = Reporter(1000, 1)
    reporter.update(10, 1000, 1000, 70)
    reporter.close()
    captured = capsys.readouterr()
    assert "Processed" not in captured.out
    assert "10 documents, 70 tokens" in captured.err
