"""Causal attention inside each document of a packed sample, without a mask over the whole sample.

Documents of similar length are laid side by side as rows of one batch, padded on the right, and attended to together:
under the causal rule a token never sees what stands to its right, so padding needs no mask either. The number of
kernel calls grows with the logarithm of the sample's length, not with the number of documents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.model.document_rows import similar_lengths
from megatron_ext.parallel.sequence_chunks import part_of

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of q, k, v `[g, n, l, hn]`, with k and v of fewer heads, to `[g, n, l, hn]`."""


@dataclass(frozen=True)
class DocumentPlan:
    """Where the tokens of a micro-batch go, so that every document has a row of its own.

    The slots of all groups stand one after the other; a group takes `documents * length` of them, row by row.

    Attributes:
        token_of_slot: int64 `[slots]`, index into the tokens in `[s, b]` order; a pad repeats its document's last one.
        slot_of_token: int64 `[s * b]`, the way back.
        pad_slots: int64 `[pads]`, the slots that hold no token of their own.
        groups: (documents, length) of each group.
    """

    token_of_slot: Tensor
    slot_of_token: Tensor
    pad_slots: Tensor
    groups: tuple[tuple[int, int], ...]


def attend_by_document(query: Tensor, key: Tensor, value: Tensor, plan: DocumentPlan, attend: Attend) -> Tensor:
    """Attend inside every document. Rank-local.

    Args:
        query: `[s, b, np/tp, hn]`.
        key: `[s, b, ng/tp, hn]`.
        value: `[s, b, ng/tp, hn]`.
        plan: `plan_documents` of this micro-batch.
        attend: the kernel.

    Returns:
        `[s, b, np/tp * hn]`.
    """
    s, b, heads, hn = query.shape
    packed = [_ToSlots.apply(x.reshape(s * b, -1, hn), plan) for x in (query, key, value)]
    out, begin = [], 0
    for documents, length in plan.groups:
        end = begin + documents * length
        q, k, v = (x[begin:end].view(documents, length, -1, hn).transpose(1, 2) for x in packed)
        out.append(attend(q, k, v).transpose(1, 2).reshape(documents * length, heads * hn))
        begin = end
    return _ToTokens.apply(torch.cat(out), plan).view(s, b, heads * hn)


def plan_documents(document_starts: Tensor, device: torch.device) -> DocumentPlan | None:
    """Return the plan of a micro-batch on `device`; None when every row is one document.

    All layers of a forward pass and of its recomputation share one plan: it is made when the memory of
    `document_starts` is seen first.

    Args:
        document_starts: int64 `[b, s]`, the place in its row at which each token's document begins; best on the CPU,
            where reading it makes no device wait.
        device: where attention computes.
    """
    return _plan(SameMemory(document_starts), device)


def restarted_positions(document_starts: Tensor, device: torch.device, part: tuple[int, int] | None = None) -> Tensor:
    """Return each token's place in its document, int64 `[s, b]` on `device`, made once per micro-batch.

    Args:
        document_starts: int64 `[b, s]`, as in `plan_documents`.
        device: where attention computes.
        part: (rank, size) among context-parallel ranks: the places of that rank's tokens only, `[s/cp, b]`.
    """
    return _positions(SameMemory(document_starts), device, part)


class SameMemory:
    """A tensor as a cache's key: equal when it is the same unchanged memory, as with what recomputation detaches.

    The cache holds the key, the key holds the tensor, so its memory is given to nobody else meanwhile.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._same = (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.device)

    def __hash__(self) -> int:
        return hash(self._same)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameMemory) and self._same == other._same


@functools.lru_cache(maxsize=32)  # more than the micro-batches that a pipeline holds at once on usual layouts
def _plan(memory: SameMemory, device: torch.device) -> DocumentPlan | None:
    starts = memory.tensor.cpu()
    b, s = starts.shape
    rows, begins = torch.nonzero(starts == torch.arange(s), as_tuple=True)
    if len(begins) == b:
        return None
    lengths = torch.diff(begins, append=begins.new_zeros(1)) % s
    lengths[lengths == 0] = s
    lengths, order = lengths.sort(descending=True, stable=True)
    first_tokens = begins[order] * b + rows[order]
    tokens, is_token, groups = [], [], []
    for first, last in similar_lengths(lengths.tolist()):
        within = torch.arange(int(lengths[first]))
        ends = lengths[first:last, None] - 1
        tokens.append((first_tokens[first:last, None] + torch.minimum(within, ends) * b).flatten())
        is_token.append((within <= ends).flatten())
        groups.append((last - first, len(within)))
    token_of_slot, own = torch.cat(tokens), torch.cat(is_token)
    slot_of_token = torch.empty(s * b, dtype=torch.int64)
    slot_of_token[token_of_slot[own]] = torch.nonzero(own).flatten()
    pad_slots = torch.nonzero(~own).flatten()
    return DocumentPlan(token_of_slot.to(device), slot_of_token.to(device), pad_slots.to(device), tuple(groups))


@functools.lru_cache(maxsize=32)
def _positions(memory: SameMemory, device: torch.device, part: tuple[int, int] | None) -> Tensor:
    starts = memory.tensor.cpu()
    places = (torch.arange(starts.shape[1]) - starts).T
    return (places if part is None else part_of(places, *part)).contiguous().to(device)


class _ToSlots(torch.autograd.Function):
    """Tokens to slots; a token has one slot of its own, and what pads get back is always zero, so nothing is added."""

    @staticmethod
    def forward(ctx, x, plan):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.plan = plan
        return x.index_select(0, plan.token_of_slot)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        return grad.index_select(0, ctx.plan.slot_of_token), None


class _ToTokens(torch.autograd.Function):
    """Slots to tokens; pads are left behind."""

    @staticmethod
    def forward(ctx, x, plan):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.plan = plan
        return x.index_select(0, plan.slot_of_token)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        return grad.index_select(0, ctx.plan.token_of_slot).index_fill_(0, ctx.plan.pad_slots, 0.0), None
