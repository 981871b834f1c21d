"""The benchmarks of a training step in tiny sizes: their sides compute the same, and each line says what it should."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
TINY = ["--layers", "1", "--seq", "64", "--rounds", "2", "--check", "2"]


def lines_of(root: Path, name: str, *arguments: str) -> list[dict]:
    command = [sys.executable, f"benchmarks/{name}.py", *TINY, *arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_a_step_beside_others_and_with_alibi(repo_root: Path):
    others = ["transformers-eager", "megatron-local"]
    step, alibi = lines_of(repo_root, "step", "--peak-size", "64", "--against", *others)
    assert set(step["ratio"]) == set(others)
    # 6 per weight and token: one layer's and the output layer's; and 6 per channel, token and place in the sequence
    weights, tokens = 4 * 512**2 + 3 * 512 * 1408 + 512 * 32000, 2 * 64
    assert math.isclose(step["model_gflop_per_step"], 6e-9 * tokens * (weights + 512 * 64), abs_tol=0.05)
    assert all(0 < share["min"] <= share["median"] <= share["max"] for share in step["share_of_products"].values())
    assert alibi["alibi_over_rope"]["min"] > 0 and alibi["first_losses"]["alibi"] != alibi["first_losses"]["rope"]


def test_two_processes_beside_one(repo_root: Path):
    [line] = lines_of(repo_root, "processes", "--tp-flags=--sequence-parallel")
    assert set(line["ratio"]) == {"TP 2", "DP 2"}
    collectives = line["collectives"]["TP 2"]
    assert 0 < collectives["exposed_share"] <= collectives["share"] < 1
    assert collectives["by_kind"]["all_gather c10::BFloat16"]["calls"] > 0


def test_small_collectives(repo_root: Path):
    command = [sys.executable, "benchmarks/collectives.py", "--ranks", "2", "3", "--rounds", "2", "--calls", "5"]
    line = json.loads(subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout)
    assert set(line["ratio"]) == {"2", "3"}
    assert set(line["milliseconds"]) == {"2 default", "2 batch", "3 default", "3 batch"}


def test_the_memory_of_logits(repo_root: Path):
    [line] = lines_of(repo_root, "logit_memory", "--vocab=2048")
    for side in line["mib"].values():
        assert side["returned"] == 2.1  # two bytes for each of 512 x (2048 + 128) numbers, in MiB
        assert side["allocated"] > 0 and side["logits"] == pytest.approx(side["allocated"] - side["returned"], abs=0.11)
    # transformers holds the logits in bf16 and in fp32, and the gradient of the latter
    assert line["mib"]["transformers"]["allocated"] >= 2048 * 128 * (2 + 4 + 4) / 2**20
