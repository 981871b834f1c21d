"""Cross entropy over a vocabulary that is sharded by tensor parallelism and padded to a multiple."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def vocab_parallel_cross_entropy(
    logits: Tensor, labels: Tensor, vocab_size: int, group: dist.ProcessGroup
) -> Tensor:
    """Return -log softmax(logits)[label] over the first `vocab_size` columns of the full vocabulary.

    Rows that only pad the vocabulary are not in the softmax and get gradient zero. Collective over `group`
    (tensor parallel) in the forward; the backward is rank-local.

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
        rows = logits.numel() // columns
        scores = torch.empty(rows, real, dtype=torch.float32, device=logits.device)
        scores.copy_(logits.reshape(rows, columns)[:, :real])
        largest = scores.amax(-1) if real else scores.new_full((rows,), float("-inf"))
        _all_reduce(largest, dist.ReduceOp.MAX, group)
        scores.sub_(largest[:, None])
        local = labels.reshape(rows) - first
        mine = (local >= 0) & (local < real)
        index = torch.where(mine, local, 0)
        target = scores.gather(1, index[:, None])[:, 0].where(mine, 0.0) if real else largest.new_zeros(rows)
        total = scores.exp_().sum(-1)
        _all_reduce(target, dist.ReduceOp.SUM, group)
        _all_reduce(total, dist.ReduceOp.SUM, group)
        ctx.save_for_backward(scores.div_(total[:, None]), index, mine)
        ctx.shape, ctx.dtype = logits.shape, logits.dtype
        return (total.log() - target).reshape(labels.shape)

    @staticmethod
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        softmax, index, mine = ctx.saved_tensors
        rows, real = softmax.shape
        weight = grad_output.reshape(rows, 1).float()
        if real:
            softmax.scatter_add_(1, index[:, None], -mine[:, None].float())
        columns = ctx.shape[-1]
        if real == columns and ctx.dtype == torch.float32:
            return softmax.mul_(weight).reshape(ctx.shape), None, None, None
        grad = torch.zeros(rows, columns, dtype=ctx.dtype, device=softmax.device)
        torch.mul(softmax, weight, out=softmax)
        grad[:, :real] = softmax
        return grad.reshape(ctx.shape), None, None, None


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op, group)
