"""ALiBi: attention scores biased by distance, in fp32."""

from __future__ import annotations

import torch
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """Return the slope of each head, fp32 `[np]`, for the *global* number of heads; a rank slices its own.

    With p the largest power of two <= np, heads 0..p-1 get 2^(-8(i+1)/p); the rest get every other slope of the
    series for 2p heads, 2^(-4(2k+1)/p), in that order (so the sequence is not monotonic for 40 heads).

    Source: arXiv:2108.12409, section 3 and its published code.
    """
    power = 1 << (num_heads.bit_length() - 1)
    exponents = [8 * (i + 1) / power for i in range(power)]
    exponents += [4 * (2 * k + 1) / power for k in range(num_heads - power)]
    return torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float32)


def alibi_bias(slopes: Tensor, sequence_length: int, first: int = 0) -> Tensor:
    """Return slope * (j - i) for query i and key j <= i, and -inf above the diagonal: fp32 `[1, n, s - first, s]`.

    The relative form keeps every finite value <= 0 and its largest values exact; adding slope * j instead differs
    by a constant per query, which drops out of the softmax.

    Args:
        slopes: fp32 `[n]`, of the heads of this rank.
        sequence_length: s.
        first: the first query i, for a chunk of queries at the end of a sequence.
    """
    position = torch.arange(sequence_length, dtype=torch.float32, device=slopes.device)
    distance = position[None, :] - position[first:, None]
    bias = slopes[:, None, None] * distance
    return bias.masked_fill_(distance > 0, float("-inf"))[None]
