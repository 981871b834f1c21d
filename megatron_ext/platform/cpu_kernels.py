"""The compiled CPU kernels of a training step (csrc/kernels), or None where they cannot run."""

from __future__ import annotations

import importlib
from typing import Any

import torch  # before the kernels: its OpenMP is then theirs, one set of threads for both


def _load() -> Any | None:
    try:
        kernels = importlib.import_module("megatron_ext._kernels")
    except ImportError:
        return None
    return kernels if kernels.supported() else None


CPU_KERNELS: Any | None = _load()
"""The module; None where it is not built, or where the machine has no AVX-512 with bf16 products."""


def fits(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can compute with these: bf16 on a CPU (they take no other type)."""
    return CPU_KERNELS is not None and all(x.dtype == torch.bfloat16 and x.device.type == "cpu" for x in tensors)
