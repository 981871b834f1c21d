"""The lines of a run that is no terminal: how much, how fast, how long still."""

from __future__ import annotations

import pytest

from megatron_ext.data.curriculum import score_progress
from megatron_ext.data.curriculum.score_progress import ScoreReporter


@pytest.mark.parametrize(("done", "left"), [(0, "2 min 40 s"), (200, "2 min 0 s")])
def test_the_rate_is_that_of_this_run(done: int, left: str, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(score_progress.time, "monotonic", lambda: now[0])
    reporter = ScoreReporter("scoring", 1000, done)
    reporter.advance(100)
    assert capsys.readouterr().out == ""
    now[0] = 40.0
    reporter.advance(100)
    assert capsys.readouterr().out == (
        f"scoring: {done + 200} tokens, {(done + 200) // 10} %, 0.00 million tokens/s, {left} left\n"
    )
    reporter.close()
