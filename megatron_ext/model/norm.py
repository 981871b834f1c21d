"""RMSNorm and LayerNorm that know sequence parallelism.

megatron-core's own torch norm refuses `sequence_parallel`; these mark their parameters instead, and
`finalize_model_grads` then sums the gradients that each tensor-parallel rank computed on its slice of the sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; statistics in fp32.

    Args of `forward`: x `[s, b, h]` or `[s/tp, b, h]`, any float dtype; returns the same shape and dtype. Rank-local.

    Source: arXiv:1910.07467, equation 4.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.hidden_size = (hidden_size,)
        self.weight = _parameter(config, torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (see the class)."""
        return functional.rms_norm(x, self.hidden_size, self.weight, self.eps)


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
