"""Cross entropy over a vocabulary that is sharded by tensor parallelism and padded to a multiple."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.model.row_chunks import row_chunks

_LAST_COLUMN = (1 << 31) - 1


def vocab_parallel_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup) -> Tensor:
    """Return -log softmax(logits)[label] over the first `vocab_size` columns of the full vocabulary.

    Rows that only pad the vocabulary are not in the softmax and get gradient zero. Collective over `group`
    (tensor parallel) in the forward; the backward is rank-local and computes the softmax again from the logits,
    so that only they are kept.

    Args:
        logits: `[s, b, v_padded/tp]`, any float dtype; this rank's slice of the vocabulary.
        labels: int64 `[s, b]`, the same on every rank of `group`; each < `vocab_size`.
        vocab_size: the true number of tokens.
        group: tensor-parallel group, ranks in vocabulary order.

    Returns:
        fp32 `[s, b]`, the same on every rank of `group`.

    Source: arXiv:1909.08053, section 3 (parallel cross entropy).
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, group, 0.0)[0]


def cross_entropy_with_max_z(
    logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup, weight: float
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

    Returns:
        The cross entropy and z, both fp32 `[s, b]`, the same on every rank of `group`; z has no gradient.

    Source: arXiv:2309.10305, section 3.4 (max-z loss).
    """
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, group, weight)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, group, max_z_weight):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        columns = logits.shape[-1]
        first = group.rank() * columns
        real = max(0, min(columns, vocab_size - first))
        scores = logits.reshape(-1, columns)[:, :real]
        rows = len(scores)
        largest, place = _largest_and_place(scores, first, group) if max_z_weight else (_largest(scores, group), None)
        local = labels.reshape(rows) - first
        mine = (local >= 0) & (local < real)
        index = torch.where(mine, local, 0)
        target = scores.gather(1, index[:, None])[:, 0].float() - largest if real else largest.new_zeros(rows)
        target = target.where(mine, 0.0)
        total = torch.zeros(rows, device=logits.device)
        for chunk in row_chunks(rows, real):
            total[chunk] = torch.sub(scores[chunk], largest[chunk, None]).exp_().sum(-1)
        _all_reduce(target, dist.ReduceOp.SUM, group)
        _all_reduce(total, dist.ReduceOp.SUM, group)
        log_total = total.log()
        peak = (largest, place - first) if max_z_weight else ()
        ctx.save_for_backward(logits, largest + log_total, index, mine, *peak)
        ctx.real, ctx.max_z_weight = real, max_z_weight
        z = largest.reshape(labels.shape)
        ctx.mark_non_differentiable(z)
        return (log_total - target).reshape(labels.shape), z

    @staticmethod
    def backward(ctx, grad_output, _):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        logits, log_sum_exp, index, mine, *peak = ctx.saved_tensors
        columns, real = logits.shape[-1], ctx.real
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        scores, grads = logits.reshape(-1, columns)[:, :real], grad.view(-1, columns)
        grads[:, real:] = 0
        weight = grad_output.reshape(-1, 1).float()
        if peak:
            largest, place = peak
            here = (place >= 0) & (place < real)
            place, slope = torch.where(here, place, 0), torch.where(here, 2 * ctx.max_z_weight * largest, 0.0)
        for chunk in row_chunks(len(scores), real):
            softmax = torch.sub(scores[chunk], log_sum_exp[chunk, None]).exp_()
            softmax.scatter_add_(1, index[chunk, None], -mine[chunk, None].float())
            if peak:
                softmax.scatter_add_(1, place[chunk, None], slope[chunk, None])
            grads[chunk, :real] = softmax.mul_(weight[chunk])
        return grad, None, None, None, None


def _largest(scores: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The largest of all ranks' scores in each row, fp32."""
    if scores.shape[1]:
        largest = scores.amax(-1).float()
    else:
        largest = scores.new_full((len(scores),), float("-inf"), dtype=torch.float32)
    _all_reduce(largest, dist.ReduceOp.MAX, group)
    return largest


def _largest_and_place(scores: Tensor, first: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The largest score of each row, fp32, and the first column of the full vocabulary that holds it, int64.

    One reduction serves both: the bits of an fp32 number, those below the sign turned over where it is negative, are
    an integer of the same order; below it, in 64 bits, stands the column, counted downwards.

    Args:
        scores: this rank's columns of the true vocabulary, maybe none.
        first: the column of the full vocabulary with which they begin.
        group: tensor-parallel group.
    """
    if scores.shape[1]:
        values, columns = scores.max(-1)  # the first of equals
    else:
        values = scores.new_full((len(scores),), float("-inf"))
        columns = torch.zeros_like(values, dtype=torch.int64)
    packed = (_in_order(values.float().view(torch.int32)).long() << 32) | (_LAST_COLUMN - first - columns)
    _all_reduce(packed, dist.ReduceOp.MAX, group)
    return _in_order((packed >> 32).int()).view(torch.float32), _LAST_COLUMN - (packed & _LAST_COLUMN)


def _in_order(bits: Tensor) -> Tensor:
    """Bits of fp32 numbers, int32, to integers of the numbers' order; its own inverse."""
    return bits ^ ((bits >> 31) & _LAST_COLUMN)


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op, group)
