"""Progress lines come at the interval asked for, with Megatron-LM's beginning."""

from __future__ import annotations

import re

import pytest

from megatron_ext.data.reporter import Reporter


def test_a_line_each_interval_and_none_between(capsys: pytest.CaptureFixture[str]):
    reporter = Reporter(None, 100)
    for documents in (50, 99, 100, 130, 199, 420, 430, 500):
        reporter.update(documents, 0, documents * 10, documents * 5)
    reporter.close()
    lines = capsys.readouterr().out.splitlines()
    assert [int(re.match(r"Processed (\d+) documents \([\d.]+ docs/s, ", line).group(1)) for line in lines] == [
        100,
        420,
        500,
    ]
    assert lines[-1].endswith("2500 tokens.")


def test_a_terminal_gets_a_bar_instead(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    reporter = Reporter(1000, 1)
    reporter.update(10, 1000, 1000, 70)
    reporter.close()
    captured = capsys.readouterr()
    assert "Processed" not in captured.out
    assert "10 documents, 70 tokens" in captured.err
