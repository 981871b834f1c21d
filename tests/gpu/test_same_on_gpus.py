"""Law L1 on GPUs: the weights, losses and first gradients of a CPU, for every model, and in layouts over NCCL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launches import train_cases
from tests.distributed.layout_matrix import BATCH
from tests.distributed.same_run import assert_same_run
from tests.distributed.tiny import CP4, LAYOUTS, MODELS, write_dataset
from tests.gpu.marks import NEEDS_A_GPU

pytestmark = NEEDS_A_GPU

GPU = "--device cuda"
STEPS = 2
RELATIVE = 5e-5
"""Between two devices, whose products add in other orders, also within a sum that layouts of one device do not cut."""
LONGER = 30
HALF = {
    "bf16": "--bf16",
    "bf16, logits whole": "--bf16 --no-cross-entropy-loss-fusion",
    "bf16, gradients added apart": "--bf16 --no-gradient-accumulation-fusion",
    "bf16, local": "--bf16 --transformer-impl local",
    "fp16": "--fp16 --loss-scale 128",
}
LAYOUTS_OF_GPUS = {2: LAYOUTS[2], 4: {**LAYOUTS[4], **CP4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset; runs go beside it."""
    out = tmp_path_factory.mktemp("gpus")
    write_dataset(out / "data")
    return out


@pytest.fixture(scope="module")
def models(data: Path) -> Path:
    """The runs of every model on either device."""
    train_cases(data, 1, [(f"{model} on cpu", model, BATCH, STEPS) for model in MODELS])
    train_cases(data, 1, [(f"{model} on cuda", model, f"{BATCH} {GPU}", STEPS) for model in MODELS])
    return data


@pytest.mark.parametrize("model", MODELS)
def test_a_gpu_computes_what_a_cpu_does(models: Path, model: str):
    assert_same_run(models / f"{model} on cpu.npz", models / f"{model} on cuda.npz", RELATIVE)


def test_half_precision_learns_what_fp32_learns(data: Path):
    """The curve of fp32 on the same GPU, but for rounding; switches of fast paths change no more than that."""
    kinds = {"fp32": "", **HALF}
    train_cases(data, 1, [(kind, "rope", f"{BATCH} {GPU} {flags}", LONGER) for kind, flags in kinds.items()])
    curves = {kind: np.load(data / f"{kind}.npz")["losses"] for kind in kinds}
    learned = curves["fp32"][0] - curves["fp32"][-1]
    assert learned > 0.5
    for kind in HALF:
        np.testing.assert_allclose(curves[kind], curves["fp32"], rtol=0, atol=0.03 * learned, err_msg=kind)


@pytest.mark.parametrize("processes", LAYOUTS_OF_GPUS, ids="{} processes".format)
def test_layouts_over_nccl_change_nothing(data: Path, processes: int):
    """With fewer GPUs than processes, on one that all share."""
    train_cases(data, 1, [("one process", "wide", f"{BATCH} {GPU}", STEPS)])
    layouts = LAYOUTS_OF_GPUS[processes]
    cases = [(f"{name} on {processes}", "wide", f"{BATCH} {GPU} {flags}", STEPS) for name, flags in layouts.items()]
    train_cases(data, processes, cases)
    for name, *_ in cases:
        assert_same_run(data / "one process.npz", data / f"{name}.npz", RELATIVE)
