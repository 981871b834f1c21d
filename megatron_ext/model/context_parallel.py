"""Attention of a rank that holds two chunks of every sequence: it gathers the keys and values of the others.

All that depends on other tokens happens here; everything else in a layer works on the rank's own tokens. Each chunk of
queries attends to the keys up to its own end, which `parallel/sequence_chunks.py` makes equally much work on every
rank. Grouped queries keep what is gathered small: `2 s b ng/tp hn` numbers a layer, of which recomputing the core
attention (`--recompute-granularity selective`) keeps none for the backward pass.

Source: arXiv:2407.21783, section 3.3.2 (Llama 3); `cp_comm_type` "all_gather" in megatron-core's words.
"""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from megatron_ext.model.alibi import alibi_bias
from megatron_ext.model.document_attention import SameMemory
from megatron_ext.parallel.sequence_chunks import join_parts, part_of, split_parts


def context_group(groups: object) -> dist.ProcessGroup | None:
    """Return the ranks that share a sequence; None for a rank that holds whole ones.

    Args:
        groups: megatron-core's `pg_collection`, as every core attention is given it.
    """
    group = getattr(groups, "cp", None)
    return group if group is not None and group.size() > 1 else None


@functools.lru_cache(maxsize=4)
def places_of_part(length: int, rank: int, size: int, device: torch.device) -> Tensor:
    """Return the place in its sequence of each token of a rank's part, int64 `[s/cp, 1]`.

    Args:
        length: s, of the whole sequence.
        rank: of `size` context-parallel ranks.
        size: cp.
        device: of the result.
    """
    return part_of(torch.arange(length, device=device), rank, size)[:, None]


def gather_keys_and_values(key: Tensor, value: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Return keys and values of whole sequences, `[s, b, ng/tp, hn]`, in their order, from `[s/cp, b, ng/tp, hn]`.

    Collective over `group`, and so is the backward pass: every rank sums, in fp32, what all ranks found for the keys
    and values that are its own.
    """
    keys, values = _Gather.apply(torch.stack((key, value), 1), group).unbind(1)
    return keys, values


def previous_tokens(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return what stands before each token of `x` in its sequence, same shape; 0 before the first of all.

    Collective over `group`, as is the backward pass: the last token of every chunk is sent to all ranks.

    Args:
        x: `[s, b, n]`, or a rank's two chunks `[s/cp, b, n]`.
        group: the ranks that share the sequences; None for whole ones.
    """
    if group is None:
        return torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    chunks = x.unflatten(0, (2, -1))
    lasts = _Gather.apply(chunks[:, -1], group)  # of each chunk one token: the same order, 2 cp places long
    befores = torch.cat([torch.zeros_like(lasts[:1]), lasts[:-1]])
    before = part_of(befores, group.rank(), group.size())
    return torch.cat([before[:, None], chunks[:, :-1]], 1).flatten(0, 1)


class _Gather(torch.autograd.Function):
    """Parts `[s/cp, ...]` of all ranks to the whole `[s, ...]`; its gradient is summed over ranks and cut again."""

    @staticmethod
    def forward(ctx, part, group):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.group = group
        parts = part.new_empty(group.size() * len(part), *part.shape[1:])
        dist.all_gather_into_tensor(parts, part.contiguous(), group=group)
        return join_parts(parts.unflatten(0, (group.size(), -1)))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        parts = split_parts(grad.float(), ctx.group.size())
        own = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(own, parts.flatten(0, 1), group=ctx.group)
        return own.to(grad.dtype), None


def first_visible(starts: Tensor | None, first: int, end: int) -> tuple[int, bool]:
    """Return the first key that any query of a chunk sees, and whether another query of it sees less.

    Args:
        starts: int64 `[b, s]`, the place at which each token's document begins, where documents are isolated; best on
            the CPU, where reading it makes no device wait.
        first: place of the chunk's first query.
        end: place behind its last one.
    """
    if starts is None:
        return 0, False
    begin = int(starts[:, first].min())
    return begin, bool((starts[:, end - 1] > begin).any())


def chunk_mask(
    slopes: tuple[float, ...], starts: Tensor | None, span: tuple[int, int], query: Tensor
) -> tuple[int, Tensor | None]:
    """Return the first key that a chunk of queries needs, and what to give the kernel for a mask.

    That is nothing for a plain triangle of queries and keys, `causal_lower_right` for a longer rectangle on a GPU,
    which a kernel knows without a matrix, and elsewhere a bias of `[1 or b, 1 or np/tp, queries, keys]`, which the
    layers of a rank share: fp32 with ALiBi, else of the queries' dtype.

    Args:
        slopes: ALiBi's, of this rank's heads; empty without it.
        starts: as in `first_visible`.
        span: place of the chunk's first query, and behind its last one.
        query: for its dtype and device.
    """
    first, end = span
    begin, apart = first_visible(starts, first, end)
    if not slopes and not apart:
        if first == begin:
            return begin, None
        if query.device.type == "cuda":
            return begin, causal_lower_right(end - first, end - begin)
    memory = SameMemory(starts) if apart and starts is not None else None
    return begin, _bias(slopes, memory, (first, begin, end), query.dtype, query.device)


@functools.lru_cache(maxsize=4)  # both chunks of two micro-batches
def _bias(
    slopes: tuple[float, ...],
    memory: SameMemory | None,
    places: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    first, begin, end = places
    key = torch.arange(begin, end, device=device)
    if slopes:
        heads = torch.tensor(slopes, dtype=torch.float32, device=device)
        bias = alibi_bias(heads, end, first)[..., begin:]
    else:
        query = torch.arange(first, end, device=device)
        bias = torch.zeros(1, 1, end - first, end - begin, dtype=dtype, device=device)
        bias.masked_fill_(key > query[:, None], float("-inf"))
    if memory is None:
        return bias
    starts = memory.tensor[:, first:end, None].to(device)
    return bias.masked_fill((key < starts)[:, None], float("-inf"))
