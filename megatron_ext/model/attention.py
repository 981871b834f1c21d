"""Core attention on PyTorch's scaled-dot-product kernels, causal, with grouped queries and ALiBi."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.alibi import alibi_bias, alibi_slopes
from megatron_ext.model.rotary import apply_rotary


@dataclass(frozen=True)
class Positions:
    """How attention knows positions: not at all, by ALiBi's bias, or by rotating queries and keys."""

    alibi: bool = False
    rotary_base: float | None = None
    rotary_percent: float = 1.0


class CausalAttention(torch.nn.Module):
    """softmax(q k^T / sqrt(hn) + bias) v, causal; the bias is zero or ALiBi, q and k may be rotated (RoPE).

    Takes megatron-core's place for `core_attention`, whose local version refuses a bias. Rank-local: every
    tensor-parallel rank works on its own heads.

    Args:
        config: megatron-core's config; `num_attention_heads` is global.
        positions: ALiBi, for this rank's slice of the global heads, or RoPE.
        **rest: what megatron-core passes to every core attention; only `pg_collection` and `softmax_scale` matter.
    """

    def __init__(self, config: TransformerConfig, positions: Positions, **rest: object) -> None:
        super().__init__()
        self.dropout = config.attention_dropout
        self.scale = rest.get("softmax_scale")
        group = rest["pg_collection"].tp  # type: ignore[attr-defined]
        heads = config.num_attention_heads // group.size()
        first = group.rank() * heads
        self.positions = positions
        slopes = alibi_slopes(config.num_attention_heads)[first : first + heads]
        self.slopes = tuple(slopes.tolist()) if positions.alibi else ()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object) -> Tensor:
        """Attend.

        Args:
            query: `[s, b, np/tp, hn]`.
            key: `[s, b, ng/tp, hn]`.
            value: `[s, b, ng/tp, hn]`.
            attention_mask: None; the causal mask is described, not materialised.

        Returns:
            `[s, b, np/tp * hn]`, dtype of `query`.
        """
        assert attention_mask is None, "documents are not isolated in this release, so no mask ever comes in"
        s, b, np, hn = query.shape
        if self.positions.rotary_base is not None:
            base, share = self.positions.rotary_base, self.positions.rotary_percent
            query, key = apply_rotary(query, base, share), apply_rotary(key, base, share)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))  # [b, n, s, hn]
        bias = _cached_bias(self.slopes, s, query.device) if self.slopes else None
        dropout = self.dropout if self.training else 0.0
        with tensor_parallel.get_cuda_rng_tracker().fork() if dropout else nullcontext():
            out = functional.scaled_dot_product_attention(
                q, k, v, bias, dropout, is_causal=bias is None, scale=self.scale, enable_gqa=k.shape[1] != np
            )
        return out.permute(2, 0, 1, 3).reshape(s, b, np * hn)


@functools.lru_cache(maxsize=2)
def _cached_bias(slopes: tuple[float, ...], sequence_length: int, device: torch.device) -> Tensor:
    """Every layer of a rank shares one bias of `[1, np/tp, s, s]`."""
    return alibi_bias(torch.tensor(slopes, dtype=torch.float32, device=device), sequence_length)
