"""Both devices offer the one interface, and `--device` chooses between them."""

from __future__ import annotations

import inspect
import os

import pytest

from megatron_ext.errors import ConfigError
from megatron_ext.platform import Platform, select_platform
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.platform.cuda import MAX_CONNECTIONS, CudaPlatform


@pytest.mark.parametrize("platform", [CpuPlatform, CudaPlatform])
def test_a_platform_has_all_of_the_interface(platform: type):
    for name in Platform.__annotations__:
        assert isinstance(getattr(platform, name), str)
    for name, method in inspect.getmembers(Platform, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(platform, name)) == inspect.signature(method), name


def test_name_and_backend_belong_together():
    assert (CpuPlatform.name, CpuPlatform.backend) == ("cpu", "gloo")
    assert (CudaPlatform.name, CudaPlatform.backend) == ("cuda", "nccl")


@pytest.mark.parametrize(
    ("device", "has_cuda", "expected"),
    [
        ("auto", True, CudaPlatform),
        ("auto", False, CpuPlatform),
        ("cpu", True, CpuPlatform),
        ("cpu", False, CpuPlatform),
        ("cuda", True, CudaPlatform),
    ],
)
def test_device_selects_the_platform(device: str, has_cuda: bool, expected: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert type(select_platform(device)) is expected


@pytest.mark.parametrize(
    ("device", "tensor_ranks", "chosen", "expected", "said"),
    [
        ("auto", 8, None, "1", "CUDA_DEVICE_MAX_CONNECTIONS set to 1"),
        ("cuda", 2, None, "1", "CUDA_DEVICE_MAX_CONNECTIONS set to 1"),
        ("cuda", 2, "1", "1", ""),
        ("cuda", 2, "32", "32", "CUDA_DEVICE_MAX_CONNECTIONS is 32, as you set it"),
        ("cuda", 1, None, None, ""),
        ("cpu", 2, None, None, ""),
    ],
)
def test_kernels_start_in_order_where_ranks_share_layers(
    device: str,
    tensor_ranks: int,
    chosen: str | None,
    expected: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Before the first question to CUDA, which reads the variable when it starts; a user's choice stays."""
    monkeypatch.setenv(MAX_CONNECTIONS, "")
    monkeypatch.delenv(MAX_CONNECTIONS)
    if chosen is not None:
        monkeypatch.setenv(MAX_CONNECTIONS, chosen)
    seen: list[str | None] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen.append(os.environ.get(MAX_CONNECTIONS)) or True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    select_platform(device, tensor_ranks)
    assert seen == [expected]
    out = capsys.readouterr().out
    assert out.startswith(said) and bool(out) == bool(said)


def test_nothing_is_said_about_cuda_where_there_is_none(monkeypatch, capsys):
    monkeypatch.setenv(MAX_CONNECTIONS, "")
    monkeypatch.delenv(MAX_CONNECTIONS)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert type(select_platform("auto", 2)) is CpuPlatform
    assert capsys.readouterr().out == ""


def test_cuda_without_a_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda .*no CUDA device.*--device cpu"):
        select_platform("cuda")


@pytest.mark.parametrize(("device", "gpus", "refused"), [("auto", 1, True), ("cuda", 1, True), ("auto", 2, False)])
def test_processes_that_would_share_a_gpu_are_refused(
    device: str, gpus: int, refused: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    if not refused:
        assert type(select_platform(device, local_processes=2)) is CudaPlatform
        return
    with pytest.raises(ConfigError, match=r"2 processes .*1 GPU\b.*own.*--nproc-per-node 1, or --device cpu"):
        select_platform(device, local_processes=2)
