"""A run is stopped by a signal, by the clock and by its length: it saves, exits 0, and the next start goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ext.checkpoint.names import read_tracker
from tests.distributed.tiny import COMMON, MODELS, write_dataset

pytestmark = pytest.mark.e2e

ITERATIONS = 100_000


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    words = [*COMMON.split(), *MODELS["rope"].split(), "--data-path", str(folder / "data"), "--log-interval", "1"]
    run = str(folder / "run")
    return subprocess.Popen(
        [sys.executable, "pretrain_gpt.py", *words, "--save", run, "--load", run, "--eval-iters", "0", *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return out


def iterations(folder: Path) -> list[int]:
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_sigterm_then_the_clock_then_the_end(tmp_path: Path):
    write_dataset(tmp_path / "data")
    process = start(tmp_path, "--train-iters", str(ITERATIONS))
    assert process.stdout is not None
    for line in process.stdout:
        if " iteration " in line:
            break
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "SIGTERM" in out
    stopped_at = read_tracker(tmp_path / "run")
    assert stopped_at and iterations(tmp_path) == list(range(1, stopped_at + 1))

    started = time.monotonic()
    minutes = "0.15"
    out = finish(start(tmp_path, "--train-iters", str(ITERATIONS), "--exit-duration-in-mins", minutes))
    assert "--exit-duration-in-mins is over" in out
    assert time.monotonic() - started > float(minutes) * 60
    second_stop = read_tracker(tmp_path / "run")
    assert second_stop and second_stop > stopped_at
    assert iterations(tmp_path) == list(range(1, second_stop + 1))

    length = str(second_stop + 2)
    out = finish(start(tmp_path, "--train-iters", length, "--override-opt-param-scheduler"))
    assert "all iterations are done" in out
    assert read_tracker(tmp_path / "run") == second_stop + 2
