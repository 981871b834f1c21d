"""A rank that fails fails the test, with what it said, and nobody waits for the others for long."""

from __future__ import annotations

import os
import time

import pytest

from tests.distributed import processes
from tests.distributed.processes import run_worker

pytestmark = pytest.mark.dist


def main(wrong_rank: str) -> None:
    """What the ranks run: one fails, the others would wait for it for ever."""
    assert os.environ["OMP_NUM_THREADS"] == "1" and os.environ["WORLD_SIZE"] == "2"
    if os.environ["RANK"] == wrong_rank:
        raise ValueError(f"rank {wrong_rank} has a reason")
    if wrong_rank != "none":
        print("still here", flush=True)
        time.sleep(3600)


def test_a_rank_that_fails_ends_the_launch_and_is_quoted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "LAST_WORDS_S", 1.0)
    with pytest.raises(AssertionError, match=r"(?s)rank 0\nstill here.*rank 1\n.*rank 1 has a reason"):
        run_worker(__name__, 2, ["1"])


def test_ranks_that_do_not_end_are_ended():
    with pytest.raises(AssertionError, match="still here"):
        run_worker(__name__, 2, ["nobody"], timeout_s=5.0)


def test_ranks_that_succeed_say_nothing():
    run_worker(__name__, 2, ["none"])
