"""Runs `pretrain_gpt.py` in forked ranks and SIGKILLs them at random moments until the run is complete.

This process imports everything once and forks each life from itself, so that a life costs its work and not the
import of torch. The runs are real ones: command line, process group, checkpoints, metrics.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pretrain_gpt
from megatron_ext.checkpoint.names import read_tracker
from megatron_ext.training import loop  # noqa: F401  (imported before the fork, so that no life pays for it)
from tests.distributed.processes import free_port
from tests.distributed.tiny import COMMON, MODELS

RANKS = 2
ITERATIONS = 44
KILLS = 20
FLAGS = (
    f"{COMMON} {MODELS['rope']} --train-iters {ITERATIONS} --use-distributed-optimizer --bf16 --hidden-dropout 0.1 "
    "--save-interval 2 --save-keep-last 3 --eval-interval 6 --log-interval 100 --no-progress"
)


def main(data: str, out: str, kills: str) -> None:
    """Live and die KILLS times, then live to the end; write where each life ended."""
    run = Path(out) / "run"
    run.parent.mkdir(parents=True)
    words = [*FLAGS.split(), "--data-path", data, "--save", str(run), "--load", str(run)]
    chance = random.Random(1234)
    lives: list[dict[str, int]] = []
    while len(lives) < int(kills):
        pids = fork_ranks(words)
        wait_for_the_moment(len(lives), run, chance)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        lives.append({"metrics": lines_of(run), "checkpoint": read_tracker(run) or 0})
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in fork_ranks(words)]
    assert statuses == [0] * RANKS, statuses
    (run.parent / "kills.json").write_text(json.dumps(lives), encoding="utf-8")


def wait_for_the_moment(life: int, run: Path, chance: random.Random) -> None:
    """Every fourth life dies while it starts; the others a random moment after they have come a little further."""
    if life % 4 == 3:
        time.sleep(chance.uniform(0.0, 0.6))
        return
    goal, deadline = 1 + life * (ITERATIONS - 4) // KILLS, time.monotonic() + 60.0
    while lines_of(run) < goal and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.2))


def lines_of(run: Path) -> int:
    """Iterations in metrics.jsonl."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def fork_ranks(words: list[str]) -> list[int]:
    """Start one life: all its ranks, on a port of their own."""
    os.environ["MASTER_PORT"] = str(free_port())
    return [fork_rank(rank, words) for rank in range(RANKS)]


def fork_rank(rank: int, words: list[str]) -> int:
    """Fork one rank of a life."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
        pretrain_gpt.main(words)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)
