"""Cross entropy over a vocabulary that is sharded by tensor parallelism and padded to a multiple."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.model import native_loss
from megatron_ext.model.row_chunks import fp32_chunks
from megatron_ext.platform.compiled import compiled
from megatron_ext.platform.kernels import COMPILED, NATIVE, TORCH

_LAST_COLUMN = (1 << 31) - 1


@dataclass(frozen=True)
class Scoring:
    """How logits become losses.

    Attributes:
        group: tensor-parallel group, ranks in vocabulary order.
        max_z_weight: `--max-z-loss-weight`; 0 for none.
        kernels: whose kernels compute what they can, as in `Kernels.elementwise`.
    """

    group: dist.ProcessGroup
    max_z_weight: float = 0.0
    kernels: str = TORCH


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup, kernels: str = TORCH
) -> Tensor:
    """Return -log softmax(logits)[label] over the first `vocab_size` columns of the full vocabulary.

    Rows that only pad the vocabulary are not in the softmax and get gradient zero. Collective over `group`
    (tensor parallel) in the forward; the backward is rank-local and computes the softmax again from the logits,
    so that only they are kept.

    Args:
        logits: `[s, b, v_padded/tp]`, any float dtype; this rank's slice of the vocabulary.
        labels: int64 `[s, b]`, the same on every rank of `group`; each < `vocab_size`.
        vocab_size: the true number of tokens.
        group: tensor-parallel group, ranks in vocabulary order.
        kernels: whose kernels compute what they can, as in `Kernels.elementwise`.

    Returns:
        fp32 `[s, b]`, the same on every rank of `group`.

    Source: arXiv:1909.08053, section 3 (parallel cross entropy).
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, Scoring(group, 0.0, kernels))[0]


def cross_entropy_with_max_z(
    logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup, weight: float, kernels: str = TORCH
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of every token, with the gradient of cross entropy + weight * z^2, and z.

    z is the largest logit of the token over the first `vocab_size` columns. The value stays the cross entropy, so
    that losses can be compared with and without the max-z loss; what reaches the gradient is multiplied by the
    gradient of the value as the cross entropy is, so a token that is masked there has neither. The gradient of z is
    that of one logit: where several are the largest, of the one with the lowest token id, which no layout changes.
    No more collectives than `vocab_parallel_cross_entropy`: the maximum and its place are reduced as one integer.

    Args:
        logits: as in `vocab_parallel_cross_entropy`.
        labels: as there.
        vocab_size: as there.
        group: as there.
        weight: `--max-z-loss-weight`, above 0.
        kernels: as there.

    Returns:
        The cross entropy and z, both fp32 `[s, b]`, the same on every rank of `group`; z has no gradient.

    Source: arXiv:2309.10305, section 3.4 (max-z loss).
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, Scoring(group, weight, kernels))


class RowStatistics(NamedTuple):
    """What the gradient of the logits of some tokens is made of besides the logits; every tensor `[rows, 1]`.

    Attributes:
        log_sum_exp: of the logits of the true vocabulary, fp32.
        label: this rank's column of the label, int64; 0 where another rank has it.
        has_label: whether this rank has the label, bool.
        place: this rank's column of the largest logit, int64, with a max-z loss; else None.
        slope: the gradient of weight * z^2 by that logit, fp32; 0 where another rank has it. None without.
    """

    log_sum_exp: Tensor
    label: Tensor
    has_label: Tensor
    place: Tensor | None = None
    slope: Tensor | None = None

    def of(self, rows: slice) -> RowStatistics:
        """The statistics of some of the rows."""
        return RowStatistics(*(tensor if tensor is None else tensor[rows] for tensor in self))


def row_statistics(
    scores: Tensor, labels: Tensor, first: int, scoring: Scoring
) -> tuple[Tensor, Tensor, RowStatistics]:
    """Return cross entropy and z of every row, fp32 `[rows]`, and what the gradient needs. Collective over the group.

    Args:
        scores: `[rows, columns]`, this rank's columns of the true vocabulary, maybe none.
        labels: int64 `[rows]`.
        first: the column of the full vocabulary with which they begin.
        scoring: the group, the max-z loss, whose kernels.
    """
    rows, real = scores.shape
    place = slope = None
    own = _own_sums(scores, scoring)
    if scoring.max_z_weight:
        largest, column = _all_largest_and_place(own.largest, own.place, first, scoring.group)
        here = (column >= first) & (column < first + real)
        place = torch.where(here, column - first, 0)
        slope = torch.where(here, 2 * scoring.max_z_weight * largest, 0.0)
    else:
        largest = own.largest.clone()
        _all_reduce(largest, dist.ReduceOp.MAX, scoring.group)
    local = labels - first
    mine = (local >= 0) & (local < real)
    label = torch.where(mine, local, 0)
    sums = torch.zeros(2, rows, device=scores.device)
    total, target = sums
    if real:
        total += _sums_below(scores, largest, own, scoring.kernels)
        target += (scores.gather(1, label[:, None])[:, 0].float() - largest).where(mine, 0.0)
    _all_reduce(sums, dist.ReduceOp.SUM, scoring.group)
    log_total = total.log()
    columns = (largest + log_total, label, mine, place, slope)
    statistics = RowStatistics(*(tensor if tensor is None else tensor[:, None] for tensor in columns))
    return log_total - target, largest, statistics


def write_logit_gradient(
    out: Tensor, scores: Tensor, statistics: RowStatistics, weight: Tensor, kernels: str = TORCH
) -> None:
    """Write the gradient of the logits; rank-local.

    Args:
        out: `[rows, columns]`, any float dtype; may be `scores` itself.
        scores: as in `row_statistics`.
        statistics: of the same rows.
        weight: fp32 `[rows, 1]`, the gradient that each token's loss gets.
        kernels: as in `Scoring`.
    """
    if kernels == NATIVE and native_loss.can_score(scores) and native_loss.can_score(out):
        native_loss.logit_gradient(out, scores, statistics, weight)
        return
    if kernels == COMPILED and scores.numel():
        compiled(logit_gradient_formula)(out, scores, statistics, weight)
        return
    for chunk in fp32_chunks(scores):
        those = statistics.of(chunk)
        softmax = torch.sub(scores[chunk], those.log_sum_exp).exp_()
        softmax.scatter_add_(1, those.label, -those.has_label.float())
        if those.place is not None and those.slope is not None:
            softmax.scatter_add_(1, those.place, those.slope)
        out[chunk] = softmax.mul_(weight[chunk])


def logit_gradient_formula(out: Tensor, scores: Tensor, statistics: RowStatistics, weight: Tensor) -> Tensor:
    """What `write_logit_gradient` writes, operation by operation, for torch.compile to make one kernel."""
    columns = torch.arange(scores.shape[1], device=scores.device)
    softmax = torch.exp(scores.float() - statistics.log_sum_exp)
    gradient = softmax - ((columns == statistics.label) & statistics.has_label).float()
    if statistics.place is not None and statistics.slope is not None:
        gradient = gradient + torch.where(columns == statistics.place, statistics.slope, 0.0)
    return out.copy_(gradient * weight)


def sums_below_formula(scores: Tensor, largest: Tensor) -> Tensor:
    """sum(exp(score - largest)) of every row, likewise."""
    return torch.exp(scores.float() - largest[:, None]).sum(-1)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, scoring):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        columns = logits.shape[-1]
        first, ctx.real = true_columns(columns, vocab_size, scoring.group)
        scores = logits.reshape(-1, columns)[:, : ctx.real]
        losses, z, statistics = row_statistics(scores, labels.flatten(), first, scoring)
        ctx.save_for_backward(logits, *statistics)
        ctx.kernels = scoring.kernels
        z = z.reshape(labels.shape)
        ctx.mark_non_differentiable(z)
        return losses.reshape(labels.shape), z

    @staticmethod
    def backward(ctx, grad_output, _):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        logits, *statistics = ctx.saved_tensors
        columns, real = logits.shape[-1], ctx.real
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        scores, grads = logits.reshape(-1, columns)[:, :real], grad.view(-1, columns)
        grads[:, real:] = 0
        weight = grad_output.reshape(-1, 1).float()
        write_logit_gradient(grads[:, :real], scores, RowStatistics(*statistics), weight, ctx.kernels)
        return grad, None, None, None


def true_columns(columns: int, vocab_size: int, group: dist.ProcessGroup) -> tuple[int, int]:
    """Return the first of this rank's `columns` of the padded vocabulary, and how many of them are no padding."""
    first = group.rank() * columns
    return first, max(0, min(columns, vocab_size - first))


class _OwnSums(NamedTuple):
    """What a rank alone knows of its rows, all `[rows]`.

    Attributes:
        largest: its largest score, fp32.
        place: the first of its columns that holds it, int64, with a max-z loss; else None.
        total: sum(exp(score - largest)), fp32, from the kernel that reads a row once; else None.
    """

    largest: Tensor
    place: Tensor | None = None
    total: Tensor | None = None


def _own_sums(scores: Tensor, scoring: Scoring) -> _OwnSums:
    """Read this rank's columns of the true vocabulary, maybe none, as far as no other rank is needed."""
    rows, real = scores.shape
    if scoring.kernels == NATIVE and native_loss.can_score(scores):
        return _OwnSums(*native_loss.row_sums(scores, bool(scoring.max_z_weight)))
    if not real:
        nothing = torch.full((rows,), float("-inf"), device=scores.device)
        return _OwnSums(nothing, torch.zeros_like(nothing, dtype=torch.int64))
    if not scoring.max_z_weight:
        return _OwnSums(scores.amax(-1).float())
    values, columns = scores.max(-1)  # the first of equals
    return _OwnSums(values.float(), columns)


def _sums_below(scores: Tensor, largest: Tensor, own: _OwnSums, kernels: str) -> Tensor:
    """sum(exp(score - largest)) of every row, `largest` being that of all ranks."""
    if own.total is not None:
        return own.total * (own.largest - largest).exp_()
    if kernels == COMPILED:
        return compiled(sums_below_formula)(scores, largest)
    total = torch.empty_like(largest)
    for chunk in fp32_chunks(scores):
        total[chunk] = torch.sub(scores[chunk], largest[chunk, None]).exp_().sum(-1)
    return total


def _all_largest_and_place(
    largest: Tensor, place: Tensor, first: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """The largest score of each row, fp32, and the first column of the full vocabulary that holds it, int64.

    One reduction serves both: the bits of an fp32 number, those below the sign turned over where it is negative, are
    an integer of the same order; below it, in 64 bits, stands the column, counted downwards.

    Args:
        largest: of this rank's columns.
        place: the first of them that holds it.
        first: the column of the full vocabulary with which they begin.
        group: tensor-parallel group.
    """
    packed = (_in_order(largest.view(torch.int32)).long() << 32) | (_LAST_COLUMN - first - place)
    _all_reduce(packed, dist.ReduceOp.MAX, group)
    return _in_order((packed >> 32).int()).view(torch.float32), _LAST_COLUMN - (packed & _LAST_COLUMN)


def _in_order(bits: Tensor) -> Tensor:
    """Bits of fp32 numbers, int32, to integers of the numbers' order; its own inverse."""
    return bits ^ ((bits >> 31) & _LAST_COLUMN)


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op, group)
