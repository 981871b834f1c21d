"""The output layer's product and the cross entropy in one, some tokens at a time: logits never exist whole."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_ext.model import native_loss
from megatron_ext.model.cross_entropy import Scoring, row_statistics, true_columns, write_logit_gradient
from megatron_ext.model.row_chunks import fp32_chunks, row_chunks
from megatron_ext.model.weight_gradient import add_product
from megatron_ext.platform.cpu_kernels import fits
from megatron_ext.platform.kernels import NATIVE

CHUNK_LOGITS, GPU_CHUNK_LOGITS = 1 << 24, 1 << 26
"""Logits at a time: few enough to be a small part of a step's memory, so many that the products run at full speed."""
CHUNK_TOKENS = 256
"""But those of so many tokens at least: for every chunk the sum of the weight's gradient goes through memory once."""
WHOLE_COLUMNS = 64
"""Rows of logits begin at multiples of so many: products whose rows are not aligned are slower (a tenth on a CPU)."""
CHUNK_WEIGHTS = 1 << 22
"""Elements of the weight's gradient at a time on a CPU, likewise; what a chunk of tokens adds is still in its cache."""


@dataclass(frozen=True)
class Targets:
    """What logits are scored on, and over which vocabulary.

    Attributes:
        labels: int64 `[s, b]`, each < `vocab_size`.
        loss_mask: fp32 `[s, b]`, by which the losses will be multiplied.
        vocab_size: the true number of tokens.
        scoring: the ranks of that vocabulary, the max-z loss, whose kernels.
    """

    labels: Tensor
    loss_mask: Tensor
    vocab_size: int
    scoring: Scoring


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Targets
) -> tuple[Tensor, Tensor]:
    """Return cross entropy and largest logit of every token for logits = hidden @ weight^T + bias.

    As `vocab_parallel_cross_entropy` and `cross_entropy_with_max_z` of these logits, in value and gradient. The
    logits of a chunk of tokens are computed, turned into their gradient, multiplied into the gradients of `hidden`
    and `weight`, and forgotten; so the forward pass computes these gradients too, and no product is computed twice.
    That needs to be told how much each token will count, by the loss mask: the losses must reach the gradient as
    c * sum(losses * loss_mask) for some c. Where they do not, the gradients are NaN.

    The gradient of the weight is summed over chunks in fp32 and rounded once: 4 v_padded/tp * h bytes until the
    backward pass, in place of the 4 v_padded/tp * s * b of half-precision logits and their gradient. Collective over
    the vocabulary's group in the forward; the gradient of `hidden` is this rank's share of a sum over that group.

    Args:
        hidden: `[s, b, h]`, fp32 or bf16, the same on every rank of the group. In fp16 a gradient could overflow
            before the loss scale, which comes in the backward pass, can make it small.
        weight: `[v_padded/tp, h]`, the dtype of `hidden`.
        bias: `[v_padded/tp]` or None.
        targets: labels and mask, vocabulary and max-z loss.

    Returns:
        Losses and z, both fp32 `[s, b]`, the same on every rank of the group; z has no gradient.

    Source: the order of the computation is that of arXiv:2410.10989, section 3.2.
    """
    shape, with_gradients = targets.labels.shape, torch.is_grad_enabled()
    losses, z = _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, bias, targets, with_gradients)
    return losses.view(shape), z.view(shape)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weight, bias, targets, with_gradients):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        labels, counts = targets.labels.flatten(), targets.loss_mask.flatten().float()
        scoring = targets.scoring
        first, real = true_columns(len(weight), targets.vocab_size, scoring.group)
        used = min(len(weight), -(-real // WHOLE_COLUMNS) * WHOLE_COLUMNS)
        used_weight, used_bias = weight[:used], None if bias is None else bias[:used]
        wanted = ctx.needs_input_grad[:3] if with_gradients else (False, False, False)
        gradients = _Gradients(rows, weight, bias, wanted, scoring.kernels)
        losses, largest = (torch.empty(len(rows), device=rows.device) for _ in range(2))
        elements = max(GPU_CHUNK_LOGITS if rows.is_cuda else CHUNK_LOGITS, CHUNK_TOKENS * len(weight))
        memory = None
        for chunk in row_chunks(len(rows), len(weight), elements):  # the same on every rank, padded or not
            logits = memory = _logits(rows[chunk], used_weight, used_bias, memory)
            scores = logits[:, :real]
            losses[chunk], largest[chunk], statistics = row_statistics(scores, labels[chunk], first, scoring)
            if any(wanted):
                write_logit_gradient(scores, scores, statistics, counts[chunk, None], scoring.kernels)
                logits[:, real:] = 0
                gradients.add(logits, rows[chunk], used_weight, chunk)
        ctx.save_for_backward(counts, *gradients.sums)
        ctx.dtype, ctx.kernels = rows.dtype, scoring.kernels
        ctx.mark_non_differentiable(largest)
        return losses, largest

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, _):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        counts, *sums = ctx.saved_tensors
        factor = common_factor(grad_output, counts)
        scaled = (None if total is None else _scaled(total, factor, ctx.dtype, ctx.kernels) for total in sums)
        return *scaled, None, None


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None) -> Tensor:
    """Return rows @ weight^T + bias in `memory`, the logits of as many tokens or more; in new memory if it is None.

    One memory for all chunks: fresh pages from the system, zeros first, cost up to a third of the product.
    """
    if memory is None:
        return functional.linear(rows, weight, bias)
    out = memory[: len(rows)]
    return torch.mm(rows, weight.T, out=out) if bias is None else torch.addmm(bias, rows, weight.T, out=out)


class _Gradients:
    """The gradients of hidden states, weight and bias, as far as they are wanted, from more and more tokens."""

    def __init__(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...], kernels: str
    ) -> None:
        of_rows, of_weight, of_bias = wanted
        # the first tokens are written, the others added: only where there are none at all must there be zeros
        new = torch.empty_like if len(rows) and len(weight) else torch.zeros_like
        self.of_rows = new(rows) if of_rows else None
        self.of_weight = new(weight, dtype=torch.float32) if of_weight else None
        self.of_bias = torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        self.kernels = kernels

    @property
    def sums(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.of_rows, self.of_weight, self.of_bias

    def add(self, of_logits: Tensor, rows: Tensor, weight: Tensor, chunk: slice) -> None:
        """Add what the tokens of `chunk` contribute, `of_logits` `[tokens, columns]` being the gradient of theirs."""
        columns = len(weight)
        if self.of_rows is not None:
            torch.mm(of_logits, weight, out=self.of_rows[chunk])
        if self.of_weight is not None:
            if chunk.start == 0:
                self.of_weight[columns:] = 0
            add = _add_product_on_gpu if rows.is_cuda else functools.partial(_add_product, kernels=self.kernels)
            add(self.of_weight[:columns], of_logits, rows, chunk.start == 0)
        if self.of_bias is not None:
            self.of_bias[:columns] += of_logits.sum(0, dtype=torch.float32)


def common_factor(grad_output: Tensor, counts: Tensor) -> Tensor:
    """Return the c of grad_output = c * counts, an fp32 scalar; NaN where there is none, 0 where nothing counts.

    Both are fp32 `[tokens]`. Computed on the device, which nobody waits for.
    """
    factor = (grad_output * counts).sum() / counts.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    holds = (grad_output - factor * counts).abs() <= 1e-5 * (factor * counts).abs()
    return torch.where(holds.all(), factor, torch.nan)


def _add_product_on_gpu(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """Add left^T right, whose sums are fp32 inside a GPU's products, to fp32 `total` without rounding them between."""
    if first:
        total.zero_()
    add_product(total, left.T, right)


def _add_product(total: Tensor, left: Tensor, right: Tensor, first: bool, kernels: str) -> None:
    """Add left^T right to fp32 `total`; the first product takes the place of what it held."""
    for some in row_chunks(left.shape[1], right.shape[1], CHUNK_WEIGHTS):
        # no name for the share, which would keep it until the next one is there
        _add(total[some], left[:, some].T @ right, first, kernels)


def _add(total: Tensor, share: Tensor, first: bool, kernels: str) -> None:
    """Add `share`, `[rows, columns]` of any float dtype, to fp32 `total`, or let it take its place.

    No fp32 copy of it exists whole.
    """
    if first:
        total.copy_(share)
    elif kernels == NATIVE and fits(share) and share.is_contiguous() and total.is_contiguous():
        native_loss.add(total, share)
    else:
        for some in fp32_chunks(share):
            total[some] += share[some]


def _scaled(total: Tensor, factor: Tensor, dtype: torch.dtype, kernels: str) -> Tensor:
    """Return `total` times `factor` in `dtype`, in the memory of `total`, which is lost; no copy of it exists whole."""
    if total.dtype == dtype:
        return total.mul_(factor)
    given = total.flatten()
    out = given.view(dtype)[: len(given)]
    for some in fp32_chunks(given):
        # a chunk's place lies before the numbers that it is made of, but for the first one; that one is PyTorch's,
        # which notes the change, so that a second backward pass is an error
        if kernels == NATIVE and some.start and fits(out):
            native_loss.scaled(out[some], given[some], float(factor))
        else:
            out[some] = given[some] * factor
    return out.view(total.shape)
