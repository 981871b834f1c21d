"""How context parallelism cuts a sequence: into 2 cp equal chunks, two of them for each rank.

Under the causal rule a late token attends to more keys than an early one. Rank r of cp holds an early chunk, r, and the
late one that makes up for it, 2 cp - 1 - r, so that every rank computes equally many scores. Pure arithmetic on
tensors, no process needed.

Source: megatron-core 0.16.1, utils.py, get_batch_on_this_cp_rank; TransformerEngine expects the same places.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chunks_of(rank: int, size: int) -> tuple[int, int]:
    """Return which of the 2 `size` chunks a rank holds, in the order in which it holds them."""
    return rank, 2 * size - 1 - rank


def part_of(whole: Tensor, rank: int, size: int, dim: int = 0) -> Tensor:
    """Return a rank's part of `whole`: its two chunks along `dim` one after the other, `s / size` of s places.

    Args:
        whole: its size along `dim`, s, is a multiple of 2 `size` by a rule of the configuration.
        rank: of `size` context-parallel ranks.
        size: cp.
        dim: the dimension of the sequence.
    """
    length = whole.shape[dim] // (2 * size)
    return torch.cat([whole.narrow(dim, chunk * length, length) for chunk in chunks_of(rank, size)], dim)


def join_parts(parts: Tensor) -> Tensor:
    """Put the parts of all ranks, `[cp, s/cp, ...]`, into the order of the sequence, `[s, ...]`."""
    chunks = parts.unflatten(1, (2, -1))
    return torch.cat((chunks[:, 0], chunks[:, 1].flip(0))).flatten(0, 1)


def split_parts(whole: Tensor, size: int) -> Tensor:
    """Cut `[s, ...]` into the parts of all ranks, `[cp, s/cp, ...]`; the inverse of `join_parts`."""
    chunks = whole.unflatten(0, (2 * size, -1))
    return torch.stack((chunks[:size], chunks[size:].flip(0)), 1).flatten(1, 2)
