"""Rows of a large matrix a few at a time, so that what is made of them in fp32 never exists whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHUNK_ELEMENTS = 1 << 20
"""Elements turned to fp32 at a time on a CPU (4 MiB): they stay in the cache."""
GPU_CHUNK_ELEMENTS = 1 << 26
"""The same on a GPU (256 MiB), where every chunk is kernels to start."""
BLOCK_ROWS = 64
"""Matrix products cut their rows into blocks of so many or a divisor: 512 rows are 7 % faster a row than 524."""


def row_chunks(rows: int, columns: int, elements: int) -> Iterator[slice]:
    """Slices of rows that hold at most `elements` each, in whole blocks if that is one; none without columns.

    At least a row, be it larger.
    """
    step = max(1, elements // columns) if columns else rows + 1
    step -= step % BLOCK_ROWS if step > BLOCK_ROWS else 0
    return (slice(start, start + step) for start in range(0, rows if columns else 0, step))


def fp32_chunks(x: torch.Tensor) -> Iterator[slice]:
    """Slices of the first dimension of `x`, `[rows]` or `[rows, columns]`, as many as to turn to fp32 at a time."""
    elements = GPU_CHUNK_ELEMENTS if x.is_cuda else CHUNK_ELEMENTS
    return row_chunks(len(x), x.shape[1] if x.ndim > 1 else 1, elements)
