"""Rotary position embedding, applied inside our core attention in one pass forward and one backward."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def apply_rotary(x: Tensor, base: float, fraction: float, positions: Tensor | None = None) -> Tensor:
    """Rotate the first `fraction` of every head of `x` by its position, half-rotate convention.

    Dimensions d and d + D/2 of the rotated D form a pair that is turned by position * base^(-2d/D). The angles are
    fp32, the products have the dtype of `x`.

    Args:
        x: `[s, b, n, hn]`. Rank-local.
        base: `--rotary-base`.
        fraction: `--rotary-percent`.
        positions: int64 `[s, b]`, each below s; None for 0..s-1 along the first dimension.

    Source: arXiv:2104.09864, equation 34; pairs as in Llama's Hugging Face weights and megatron-core's default.
    """
    rotated = int(x.shape[-1] * fraction)
    cos, sin = _tables(x.shape[0], rotated, base, x.dtype, x.device)
    if positions is not None:
        cos, sin = (table[positions, 0] for table in (cos, sin))  # [s, b, 1, D/2]
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., 2 * half :] = x[..., 2 * half :]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    return out


@functools.lru_cache(maxsize=4)
def _tables(length: int, rotated: int, base: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[s, 1, 1, D/2]`, shared by all layers."""
    frequency = 1.0 / base ** (torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)[:, None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)
