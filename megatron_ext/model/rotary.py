"""Rotary position embedding, applied inside our core attention in one pass forward and one backward."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from megatron_ext.model.document_attention import SameMemory
from megatron_ext.model.rotary_frequencies import Rotary, attention_factor, inverse_frequencies
from megatron_ext.platform.compiled import compiled
from megatron_ext.platform.kernels import COMPILED, TORCH


def apply_rotary(
    x: Tensor,
    rotary: Rotary,
    positions: Tensor | None = None,
    length: int | None = None,
    kernels: str = TORCH,
) -> Tensor:
    """Rotate the first channels of every head of `x` by its position.

    Of the D rotated channels, d and d + D/2 form a pair, or 2d and 2d + 1 if interleaved, that is turned by
    position * inverse_frequencies[d]; yarn scales it as well. The angles are fp32, the products have the dtype of `x`.

    Args:
        x: `[s, b, n, hn]`. Rank-local.
        rotary: which channels turn, and how fast.
        positions: int64 `[s, b]`, or `[s, 1]` for all rows, each below `length`; None for 0..s-1 along the first
            dimension.
        length: of the sequence that `x` is a part of; None where it is the whole of it.
        kernels: whose, PyTorch's or what torch.compile makes, which round the sum of the products alone.

    Source: arXiv:2104.09864, equation 34, whose pairs are interleaved; pairs d, d + D/2 as in Llama's Hugging Face
    weights and megatron-core's default.
    """
    rotated = int(x.shape[-1] * rotary.percent)
    tables = (length or x.shape[0], rotated, rotary, x.dtype, x.device)
    cos, sin = rotary_tables(*tables) if positions is None else _tables_at(SameMemory(positions), *tables)
    return _Rotate.apply(x, cos, sin, rotary.interleaved, compiled(rotated_formula) if kernels == COMPILED else _rotate)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin, interleaved, rotate):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.save_for_backward(cos, sin)
        ctx.interleaved, ctx.rotate = interleaved, rotate
        return rotate(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        cos, sin = ctx.saved_tensors
        return ctx.rotate(grad, cos, -sin, ctx.interleaved), None, None, None, None


def rotated_formula(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """What `_rotate` writes into its place piece by piece, as one expression, for torch.compile to make one kernel."""
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pair = first * cos - second * sin, second * cos + first * sin
    return torch.cat([torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1), rest], -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    half = cos.shape[-1]
    rotated = 2 * half
    halves = (slice(0, rotated, 2), slice(1, rotated, 2)) if interleaved else (slice(0, half), slice(half, rotated))
    first, second = (x[..., part] for part in halves)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out[..., rotated:] = x[..., rotated:]
    torch.mul(first, cos, out=out[..., halves[0]]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., halves[1]]).addcmul_(first, sin)
    return out


@functools.lru_cache(maxsize=4)
def rotary_tables(
    length: int, rotated: int, rotary: Rotary, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines `[s, 1, 1, D/2]`, shared by all layers, for `rotated` = D channels of every head."""
    frequency, factor = inverse_frequencies(rotary, rotated, device), attention_factor(rotary)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequency)[:, None, None, :]
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


@functools.lru_cache(maxsize=4)
def _tables_at(
    places: SameMemory, length: int, rotated: int, rotary: Rotary, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the rows of `rotary_tables` at `places` `[s, b or 1]`, as `[s, b or 1, 1, D/2]`; all layers share them."""
    cos, sin = rotary_tables(length, rotated, rotary, dtype, device)
    return cos[places.tensor, 0], sin[places.tensor, 0]
