"""The CPU kernels of the losses (csrc/kernels/loss.cpp): bf16 in memory, fp32 inside, every result rounded once.

Each has its reference in PyTorch's operations beside its caller; `can_score` and `fits` say where it may take over.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ext.platform.cpu_kernels import CPU_KERNELS, fits


def can_score(scores: Tensor) -> bool:
    """Whether the kernels take these logits, `[rows, columns]`: bf16 on a CPU, the numbers of a row side by side."""
    return fits(scores) and scores.stride(1) == 1


def row_sums(scores: Tensor, with_place: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the largest number of every row, the first column that holds it, and sum(exp(x - largest)).

    A NaN makes the sum NaN and is passed over in the largest number. A row of -inf, or of nothing, has the sum 0.

    Args:
        scores: what `can_score`.
        with_place: whether the column is asked for; None otherwise.

    Returns:
        fp32, int64 and fp32, all `[rows]`.
    """
    rows, columns = scores.shape
    largest, total = torch.empty(2, rows)
    place = torch.empty(rows, dtype=torch.int64) if with_place else None
    CPU_KERNELS.row_sums(
        scores.data_ptr(), scores.stride(0), rows, columns, largest.data_ptr(), _address(place), total.data_ptr()
    )
    return largest, place, total


def logit_gradient(out: Tensor, scores: Tensor, statistics: tuple[Tensor | None, ...], weight: Tensor) -> None:
    """Write (softmax - one-hot of the label + slope at the place) * weight.

    Args:
        out: `[rows, columns]`, bf16, `can_score`; may be `scores` itself.
        scores: likewise.
        statistics: the fields of `RowStatistics`, `[rows, 1]` each.
        weight: fp32 `[rows, 1]`.
    """
    kept = [tensor if tensor is None else tensor.contiguous() for tensor in (*statistics, weight)]
    CPU_KERNELS.logit_gradient(
        out.data_ptr(), out.stride(0), scores.data_ptr(), scores.stride(0), *scores.shape, *map(_address, kept)
    )


def add(total: Tensor, share: Tensor) -> None:
    """Add bf16 `share` to fp32 `total`, both contiguous and of one size."""
    CPU_KERNELS.add(total.data_ptr(), share.data_ptr(), total.numel())


def scaled(out: Tensor, total: Tensor, factor: float) -> None:
    """Write fp32 `total` times `factor` to bf16 `out`, both contiguous and of one size."""
    CPU_KERNELS.scaled(out.data_ptr(), total.data_ptr(), total.numel(), factor)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
