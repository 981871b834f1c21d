"""CUDA: the local rank's device, and nothing adapted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_ext.platform.cuda import CudaPlatform


@pytest.mark.parametrize(("local_rank", "num_threads", "expected"), [(0, None, []), (3, 2, [2])])
def test_activation_takes_the_device_of_the_local_rank(
    local_rank: int, num_threads: int | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
):
    devices: list[int] = []
    threads: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", devices.append)
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    assert CudaPlatform().activate(local_rank, num_threads) == torch.device("cuda", local_rank)
    assert (devices, threads) == ([local_rank], expected)


def test_peak_memory_is_the_allocators(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 12345)
    assert CudaPlatform().peak_memory_bytes() == 12345


def test_nothing_is_adapted(repo_root: Path):
    """In a process of its own, because the CPU adapter of other tests stays in this one."""
    program = (
        "import torch\n"
        "before = (torch.Tensor.to, torch.empty, torch.cuda.synchronize, torch.cuda.Stream)\n"
        "torch.cuda.set_device = lambda rank: None\n"
        "from megatron_ext.platform.cuda import CudaPlatform\n"
        "CudaPlatform().activate(0, None)\n"
        "assert before == (torch.Tensor.to, torch.empty, torch.cuda.synchronize, torch.cuda.Stream)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=repo_root, check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_device_is_activated(repo_root: Path):
    program = (
        "import torch\n"
        "from megatron_ext.platform.cuda import CudaPlatform\n"
        "device = CudaPlatform().activate(0, None)\n"
        "held = torch.ones(1 << 20, device=device)\n"
        "assert held.is_cuda and torch.cuda.current_device() == 0\n"
        "assert CudaPlatform().peak_memory_bytes() >= 4 << 20\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=repo_root, check=True)
