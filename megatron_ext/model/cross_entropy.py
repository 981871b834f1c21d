"""Cross entropy over a vocabulary that is sharded by tensor parallelism and padded to a multiple."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits turned to fp32 at a time (4 MiB): they stay in the cache, and the fp32 logits never exist whole."""


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
    return _VocabParallelCrossEntropy.apply(logits, labels, vocab_size, group)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, vocab_size, group):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        columns = logits.shape[-1]
        first = group.rank() * columns
        real = max(0, min(columns, vocab_size - first))
        scores = logits.reshape(-1, columns)[:, :real]
        rows = len(scores)
        largest = scores.amax(-1).float() if real else scores.new_full((rows,), float("-inf"), dtype=torch.float32)
        _all_reduce(largest, dist.ReduceOp.MAX, group)
        local = labels.reshape(rows) - first
        mine = (local >= 0) & (local < real)
        index = torch.where(mine, local, 0)
        target = scores.gather(1, index[:, None])[:, 0].float() - largest if real else largest.new_zeros(rows)
        target = target.where(mine, 0.0)
        total = torch.zeros(rows, device=logits.device)
        for chunk in _chunks(rows, real):
            total[chunk] = torch.sub(scores[chunk], largest[chunk, None]).exp_().sum(-1)
        _all_reduce(target, dist.ReduceOp.SUM, group)
        _all_reduce(total, dist.ReduceOp.SUM, group)
        log_total = total.log()
        ctx.save_for_backward(logits, largest + log_total, index, mine)
        ctx.real = real
        return (log_total - target).reshape(labels.shape)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        logits, log_sum_exp, index, mine = ctx.saved_tensors
        columns, real = logits.shape[-1], ctx.real
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        scores, grads = logits.reshape(-1, columns)[:, :real], grad.view(-1, columns)
        grads[:, real:] = 0
        weight = grad_output.reshape(-1, 1).float()
        for chunk in _chunks(len(scores), real):
            softmax = torch.sub(scores[chunk], log_sum_exp[chunk, None]).exp_()
            softmax.scatter_add_(1, index[chunk, None], -mine[chunk, None].float())
            grads[chunk, :real] = softmax.mul_(weight[chunk])
        return grad, None, None, None


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that hold about `CHUNK_ELEMENTS` elements each; none where this rank holds padding only."""
    step = max(1, CHUNK_ELEMENTS // columns) if columns else rows + 1
    return (slice(start, start + step) for start in range(0, rows if columns else 0, step))


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op, group)
