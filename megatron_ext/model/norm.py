"""RMSNorm and LayerNorm that know sequence parallelism.

megatron-core's own torch norm refuses `sequence_parallel`; these mark their parameters instead, and
`finalize_model_grads` then sums the gradients that each tensor-parallel rank computed on its slice of the sequence.
"""

from __future__ import annotations

import torch
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn import functional


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; statistics in fp32.

    Args of `forward`: x `[s, b, h]` or `[s/tp, b, h]`, any float dtype; returns the same shape and dtype. Rank-local.

    Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(config, torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (see the class)."""
        return _RMSNormFunction.apply(x, self.weight, self.eps)


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


class LayerNorm(torch.nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last dimension.

    Args of `forward`: x `[s, b, h]` or `[s/tp, b, h]`, any float dtype; returns the same shape and dtype. Rank-local.

    Source: arXiv:1607.06450.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.hidden_size = (hidden_size,)
        self.weight = _parameter(config, torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = _parameter(config, torch.zeros(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (see the class)."""
        return functional.layer_norm(x, self.hidden_size, self.weight, self.bias, self.eps)


NORMS: dict[str, type[torch.nn.Module]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}
"""`--normalization` to its class."""


def _parameter(config: TransformerConfig, value: Tensor) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(value)
    # read by megatron-core's finalize_model_grads: sum this gradient over the tensor-parallel ranks
    parameter.sequence_parallel = config.sequence_parallel
    return parameter
