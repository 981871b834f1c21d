"""The commands on a GPU: train, stop, go on there and on the CPU, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.distributed.tiny import COMMON, MODELS, write_dataset
from tests.gpu.marks import NEEDS_A_GPU

pytestmark = NEEDS_A_GPU

ROOT = Path(__file__).resolve().parents[2]
HALF, WHOLE = 4, 8


def run(*words: object) -> str:
    """Run a command from the root; its output."""
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def train(folder: Path, name: str, *flags: str) -> list[float]:
    """Train as a user would, by torchrun, into FOLDER/NAME; the losses."""
    words = COMMON.replace("--device cpu", "").replace("--train-iters 50", f"--train-iters {WHOLE}")
    out = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "pretrain_gpt.py"),
        *words.split(),
        *MODELS["gqa"].split(),
        *("--data-path", folder / "data", "--save", folder / name, "--bf16", "--log-interval", "1"),
        *flags,
    )
    device = "cpu" if "--device" in flags else "cuda"
    assert f"on 1 {device} process" in out, out
    lines = (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["lm_loss"] for line in lines]


def test_a_run_goes_on_where_it_stopped_on_either_device_and_is_exported(tmp_path: Path):
    """The export itself compares its logits with the training model's."""
    write_dataset(tmp_path / "data")
    whole = train(tmp_path, "whole")
    assert len(whole) == WHOLE
    first = train(tmp_path, "first", "--exit-interval", str(HALF))
    on_gpu = train(tmp_path, "on_gpu", "--load", str(tmp_path / "first"))
    on_cpu = train(tmp_path, "on_cpu", "--load", str(tmp_path / "first"), "--device", "cpu")
    # kernels of attention's backward pass add in no fixed order
    np.testing.assert_allclose(first + on_gpu, whole, rtol=1e-3)
    np.testing.assert_allclose(on_cpu, on_gpu, rtol=1e-2)
    run("checkpoint_convert/megatron_to_hf.py", "--load", tmp_path / "on_gpu", "--save", tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").is_file()
