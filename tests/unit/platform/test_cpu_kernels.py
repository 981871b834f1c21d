"""The compiled kernels are there where they can run, and say what they can compute with."""

from __future__ import annotations

import sys

import pytest
import torch

from megatron_ext.platform import cpu_kernels
from megatron_ext.platform.cpu_kernels import fits


def test_an_extension_that_is_not_built_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "megatron_ext._kernels", None)
    assert cpu_kernels._load() is None


def test_they_take_bf16_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_kernels, "CPU_KERNELS", object())
    half = torch.ones(2, dtype=torch.bfloat16)
    assert fits(half, half) and not fits(half, half.float()) and not fits(half.to("meta"))
    monkeypatch.setattr(cpu_kernels, "CPU_KERNELS", None)
    assert not fits(half)
