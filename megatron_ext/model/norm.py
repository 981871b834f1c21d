"""RMSNorm and LayerNorm that know sequence parallelism.

megatron-core's own torch norm refuses `sequence_parallel`; these mark their parameters instead, and
`finalize_model_grads` then sums the gradients that each tensor-parallel rank computed on its slice of the sequence.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_ext.config import ModelConfig
from megatron_ext.platform.compiled import compiled
from megatron_ext.platform.cpu_kernels import CPU_KERNELS, fits
from megatron_ext.platform.kernels import APEX, NATIVE, Kernels


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; statistics in fp32.

    Args of `forward`: x `[s, b, h]` or `[s/tp, b, h]`, any float dtype; returns the same shape and dtype. Rank-local.

    Source: arXiv:1910.07467, equation 4.
    """

    kernels = Kernels()

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.function = self._function(hidden_size)
        self.weight = _parameter(config, torch.ones(hidden_size, dtype=config.params_dtype))

    def _function(self, hidden_size: int) -> Callable[..., Tensor]:
        if self.kernels.norm == APEX:
            return _apex("fused_rms_norm_affine", hidden_size)
        plain = compiled(rms_norm_formula) if self.kernels.compiled else rms_norm
        return functools.partial(native_rms_norm, otherwise=plain) if self.kernels.norm == NATIVE else plain

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (see the class)."""
        return self.function(x, self.weight, eps=self.eps)


def rms_norm_formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`, operation by operation, for torch.compile to make one kernel of each way."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm's formula: torch's fused kernel on a GPU, ours on a CPU, where torch has none. Rank-local.

    Args:
        x: `[..., h]`.
        weight: `[h]`.
        eps: added to the mean of squares.
    """
    if x.is_cuda:
        return functional.rms_norm(x, weight.shape, weight, eps)
    return _RMSNormFunction.apply(x, weight, eps)


class _RMSNormFunction(torch.autograd.Function):
    """torch composes rms_norm from a dozen passes on CPU; these are about half as many, and keep only x."""

    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x32 = x.float()
        rstd = torch.linalg.vecdot(x32, x32).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, rstd)
        return torch.mul(x32, rstd).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x, weight, rstd = ctx.saved_tensors
        normal = x.float() * rstd
        grad = grad_output.float()
        grad_weight = (normal * grad).flatten(0, -2).sum(0).to(weight.dtype)
        grad = grad * weight.float()
        share = torch.linalg.vecdot(grad, normal).div_(x.shape[-1]).unsqueeze(-1)
        return grad.sub_(normal.mul_(share)).mul_(rstd).to(x.dtype), grad_weight, None


def native_rms_norm(x: Tensor, weight: Tensor, eps: float, otherwise: Callable[..., Tensor] = rms_norm) -> Tensor:
    """As `rms_norm`, in our CPU kernels where they fit: bf16 x and weight, fp32 inside, rounded once."""
    return (
        _NativeRMSNorm.apply(x, weight, eps)
        if fits(x, weight) and weight.shape == x.shape[-1:]
        else otherwise(x, weight, eps)
    )


class _NativeRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x, weight = x.contiguous(), weight.contiguous()
        out, rstd = torch.empty_like(x), torch.empty(x.shape[:-1], device=x.device)
        CPU_KERNELS.rms_norm(*_addresses(out, rstd, x, weight), rstd.numel(), x.shape[-1], eps)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        x, weight, rstd = ctx.saved_tensors
        upstream, of_x, of_weight = grad_output.contiguous(), torch.empty_like(x), torch.empty_like(weight)
        addresses = _addresses(of_x, of_weight, upstream, x, weight, rstd)
        CPU_KERNELS.rms_norm_gradient(*addresses, rstd.numel(), x.shape[-1])
        return of_x, of_weight, None


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


class LayerNorm(torch.nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    Args of `forward`: x `[s, b, h]` or `[s/tp, b, h]`, any float dtype; returns the same shape and dtype. Rank-local.

    Source: arXiv:1607.06450.
    """

    kernels = Kernels()

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        torchs = functools.partial(functional.layer_norm, normalized_shape=(hidden_size,))
        self.function = _apex("fused_layer_norm_affine", hidden_size) if self.kernels.norm == APEX else torchs
        self.weight = _parameter(config, torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = _parameter(config, torch.zeros(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (see the class)."""
        return self.function(x, weight=self.weight, bias=self.bias, eps=self.eps)


NORMS: dict[str, type[torch.nn.Module]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}
"""`--normalization` to its class."""


def norm_of(model: ModelConfig, kernels: Kernels) -> type[torch.nn.Module]:
    """Return the class of the norm of `model`, one with the kernels that `kernels` names.

    Our own CPU kernels are of RMSNorm: LayerNorm's are PyTorch's, which are fused on a CPU as well.
    """
    norm = NORMS[model.normalization]
    # a class, since megatron-core takes its norms as classes only
    return norm if kernels == Kernels() else type(norm.__name__, (norm,), {"kernels": kernels})


def _apex(name: str, hidden_size: int) -> Callable[..., Tensor]:
    function: Any = getattr(importlib.import_module("apex.normalization.fused_layer_norm"), name)
    return functools.partial(function, normalized_shape=(hidden_size,))


def _parameter(config: TransformerConfig, value: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(value)
    # read by megatron-core's finalize_model_grads: sum this gradient over the tensor-parallel ranks
    parameter.sequence_parallel = config.sequence_parallel
    return parameter
