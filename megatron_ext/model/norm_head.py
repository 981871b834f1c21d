"""NormHead: an output layer that sees the direction of each of its rows, not its length."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ext.model.row_chunks import fp32_chunks

EPS = 1e-12
"""The least length that a row is divided by."""


def normalized_rows(weight: Tensor) -> Tensor:
    """Return row / max(|row|, 1e-12) for each row of `weight`; the gradient passes through the length too.

    Rank-local: tensor parallelism cuts the vocabulary, so a rank holds its rows whole. Lengths, quotients and the
    gradient are fp32 inside. Of a row of zeros the gradient is what torch's own `normalize` gives: the upstream one
    divided by 1e-12.

    Args:
        weight: `[v/tp, h]`, any float dtype.

    Returns:
        `[v/tp, h]`, the dtype of `weight`.

    Source: arXiv:2309.10305, appendix B; the constant is that of the published model's code.
    """
    return _NormalizedRows.apply(weight)


class _NormalizedRows(torch.autograd.Function):
    """torch composes `normalize` from full-size fp32 tensors and keeps one of them; this keeps the lengths only."""

    @staticmethod
    def forward(ctx, weight):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        lengths = weight.new_empty((len(weight), 1), dtype=torch.float32)
        for chunk in fp32_chunks(weight):
            rows = weight[chunk].float()
            torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=lengths[chunk])
            out[chunk] = rows / lengths[chunk].clamp(min=EPS)
        ctx.save_for_backward(weight, lengths)
        return out

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        weight, lengths = ctx.saved_tensors
        out = torch.empty_like(weight, memory_format=torch.contiguous_format)
        for chunk in fp32_chunks(weight):
            length = lengths[chunk].clamp(min=EPS)
            direction = weight[chunk] / length
            grad = grad_output[chunk].float()
            along = torch.linalg.vecdot(grad, direction).unsqueeze(-1)
            # below the constant the divisor does not move, and nothing is taken away
            along = torch.where(lengths[chunk] > EPS, along, 0.0)
            out[chunk] = (grad - direction.mul_(along)).div_(length)
        return out
