"""--deterministic-data-parallel: 1, 2 and 4 data-parallel ranks give the same bits; without the flag they do not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import PP, TP, VPP, write_dataset

pytestmark = pytest.mark.dist

STEPS = 10
ORDERED = "--deterministic-data-parallel"
# 12 micro-batches: 4 runs of 3
BATCH = "--micro-batch-size 1 --global-batch-size 12 --num-threads 1"
RUNS = {
    "fp32": (1, 4, "gpt2", ORDERED),
    "bf16 distopt": (1, 4, "masked", f"{ORDERED} --bf16 --use-distributed-optimizer"),
    "fp16": (1, 2, "rope", f"{ORDERED} --fp16 --initial-loss-scale 16 --deterministic-data-parallel-parts 2"),
    "tp2 sp": (2, 4, "gpt2", f"{ORDERED} {TP} 2 --sequence-parallel"),
    "pp2": (2, 4, "normed", f"{ORDERED} {PP} 2 --bf16"),
    "pp2 vpp2 distopt": (2, 4, "gpt2", f"{ORDERED} {PP} 2 {VPP} 2 --use-distributed-optimizer"),
    "without": (1, 2, "gpt2", ""),
}
"""Name -> fewest and most processes (doubled in between), model, flags."""


def sizes(name: str) -> list[int]:
    fewest, most, *_ = RUNS[name]
    return [size for size in (1, 2, 4) if fewest <= size <= most]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all runs; a folder of results."""
    out = tmp_path_factory.mktemp("ordered")
    write_dataset(out / "data")
    for processes in (1, 2, 4):
        cases = [
            {
                "name": f"{name} {processes}",
                "model": model,
                "flags": f"{BATCH} {flags}",
                "steps": STEPS,
                "data": str(out / "data"),
                "with_optimizer": True,
            }
            for name, (_, _, model, flags) in RUNS.items()
            if processes in sizes(name)
        ]
        file = out / f"cases{processes}.json"
        file.write_text(json.dumps(cases), encoding="utf-8")
        run_worker("tests.distributed.layouts_worker", processes, [str(file), str(out), str(processes)])
    return out


def differences(results: Path, name: str, processes: int) -> list[str]:
    """What is not bit-equal to the run with the fewest processes: losses, norms, weights, sums of gradients."""
    with np.load(results / f"{name} {sizes(name)[0]}.npz") as one, np.load(results / f"{name} {processes}.npz") as many:
        assert set(one.files) == set(many.files) > {"losses", "grad_norms", "validation"}
        assert any("exp_avg." in entry for entry in one.files)
        assert one["losses"][-3:].mean() < one["losses"][0] and np.isfinite(one["grad_norms"]).all()
        return [entry for entry in one.files if not np.array_equal(one[entry], many[entry])]


@pytest.mark.parametrize(
    ("name", "processes"), [(name, size) for name in RUNS if name != "without" for size in sizes(name)[1:]]
)
def test_the_number_of_ranks_does_not_change_a_bit(results: Path, name: str, processes: int):
    assert differences(results, name, processes) == []


def test_without_the_flag_it_does(results: Path):
    different = differences(results, "without", 2)
    assert {"losses", "grad_norms"} <= set(different) and len(different) > 20
