"""Whose kernels compute: PyTorch's own; on a GPU those of Transformer Engine and Apex; on a CPU ours (csrc/kernels)."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass, replace

from megatron_ext.errors import ConfigError

TORCH, ENGINE, APEX, NATIVE = "torch", "TransformerEngine", "Apex", "AVX-512"
COMPILED = "torch.compile"


@dataclass(frozen=True)
class Kernels:
    """The back end of each part.

    Attributes:
        attention: causal attention. Transformer Engine's without ALiBi and isolated documents, which are PyTorch's.
        norm: RMSNorm and LayerNorm. Never Transformer Engine's, whose norms keep a state of their own in checkpoints.
        elementwise: SwiGLU, RoPE, cross entropy; on a GPU what torch.compile makes of them, where Triton is there.
        adam: the update rule of `--optimizer adam`.
        compiled: whether torch.compile makes RMSNorm and SwiGLU on a CPU, where none of the above does (`--compile`).
    """

    attention: str = TORCH
    norm: str = TORCH
    elementwise: str = TORCH
    adam: str = TORCH
    compiled: bool = False

    @classmethod
    def of(cls, engine: bool, apex: bool, triton: bool) -> Kernels:
        """The choice on a GPU with these libraries."""
        adam = ENGINE if engine else APEX if apex else TORCH
        return cls(ENGINE if engine else TORCH, APEX if apex else TORCH, COMPILED if triton else TORCH, adam)

    def describe(self) -> str:
        """All of it in one clause."""
        ours = f" (SwiGLU, RoPE and losses {self.elementwise})" if self.elementwise != TORCH else ""
        compiled = "; torch.compile for RMSNorm and SwiGLU elsewhere" if self.compiled else ""
        return f"attention {self.attention}, norms {self.norm}, Adam {self.adam}{ours}{compiled}"


def choose_kernels(device: str, transformer_impl: str | None = None, compiled: bool = False) -> Kernels:
    """Return whose kernels compute on `device`.

    Args:
        device: `cpu` or `cuda`.
        transformer_impl: `--transformer-impl`: local for PyTorch's, transformer_engine to insist on that library;
            None takes what is installed, and on a CPU our own (for bf16, where the machine can run them).
        compiled: `--compile`; on a GPU only local is without it.

    Raises:
        ConfigError: Transformer Engine was asked for and is not there, or nothing that torch.compile could use.
    """
    if compiled:
        _refuse_without_compiler(device)
        chosen = choose_kernels(device, transformer_impl)
        return replace(chosen, elementwise=COMPILED) if device == "cuda" else replace(chosen, compiled=True)
    if transformer_impl == "local":
        return Kernels()
    if device != "cuda":
        from megatron_ext.platform import cpu_kernels  # imports torch, which the doctor must not need

        return Kernels() if cpu_kernels.CPU_KERNELS is None else Kernels(NATIVE, NATIVE, NATIVE)
    engine = has_transformer_engine()
    if transformer_impl == "transformer_engine" and not engine:
        raise ConfigError(
            "--transformer-impl transformer_engine was asked for, but the library is not installed",
            "its torch part, transformer_engine_torch, cannot be found",
            "install requirements/gpu.txt, or leave the flag out",
        )
    return Kernels.of(engine, has_apex(), has_triton())


def _refuse_without_compiler(device: str) -> None:
    """torch.compile writes C++ for a CPU and Triton for a GPU; what translates these is not part of torch."""
    if device == "cuda" and not has_triton():
        raise ConfigError(
            "--compile needs Triton and a C compiler on a GPU",
            "not both are there",
            "pip install triton, install gcc, or leave the flag out",
        )
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    if device != "cuda" and not any(map(shutil.which, names)):
        raise ConfigError("--compile needs a C++ compiler on a CPU", f"no {', '.join(names)}", "install g++")


def has_triton() -> bool:
    """Return whether Triton is there, in which torch.compile writes kernels for a GPU, and the C compiler it calls."""
    names = (os.environ.get("CC", "cc"), "gcc", "clang")
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, names))


def has_transformer_engine() -> bool:
    """Return whether Transformer Engine's torch part is installed (the bare meta package is not enough)."""
    return importlib.util.find_spec("transformer_engine_torch") is not None


def has_apex() -> bool:
    """Return whether NVIDIA's Apex is installed, with its compiled norms and optimizers; another project has its name.

    So its parts are looked for, not the name alone.
    """
    if importlib.util.find_spec("apex") is None or importlib.util.find_spec("fused_layer_norm_cuda") is None:
        return False
    try:
        norms = importlib.import_module("apex.normalization.fused_layer_norm")
        optimizers = importlib.import_module("apex.optimizers")
    except ImportError:
        return False
    return hasattr(norms, "fused_rms_norm_affine") and hasattr(optimizers, "FusedAdam")


def describe_kernels(device: str, transformer_impl: str | None = None, compiled: bool = False) -> str:
    """Return in one clause which kernels compute, in place of megatron-core's warnings at import."""
    absent = [] if has_transformer_engine() else [ENGINE]
    absent += [] if has_apex() else ["NVIDIA's Apex"]
    absent += [] if has_triton() else ["Triton or a C compiler"]
    missing = f" ({', '.join(absent)} not installed)" if absent and device == "cuda" else ""
    return choose_kernels(device, transformer_impl, compiled).describe() + missing
