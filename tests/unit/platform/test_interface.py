"""Both devices offer the one interface, and `--device` chooses between them."""

from __future__ import annotations

import inspect

import pytest

from megatron_ext.errors import ConfigError
from megatron_ext.platform import Platform, select_platform
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.platform.cuda import CudaPlatform


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
    assert type(select_platform(device)) is expected


def test_cuda_without_a_cuda_device_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda .*no CUDA device.*--device cpu"):
        select_platform("cuda")
