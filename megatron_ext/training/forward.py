"""One micro-batch through this rank's stage, and its loss: what megatron-core's schedules call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Batch = dict[str, Tensor]
LossFunction = Callable[[Tensor], tuple[Tensor, Tensor, dict[str, Tensor]]]


def forward_step(micro_batches: Iterator[Batch] | None, model: torch.nn.Module) -> tuple[Tensor, LossFunction]:
    """Run one micro-batch through `model`.

    Args:
        micro_batches: yields tokens, labels, position_ids (int64 `[b, s]`), loss_mask (fp32 `[b, s]`),
            document_starts (int64 `[b, s]`) where attention must know documents, the samples' places in the stream
            (int64) for noise, and the sources of the samples (int64, on the host) of a blend; None on stages that read
            nothing. Under context parallelism s is s/cp, but for document_starts.
        model: a model chunk of this rank.

    Returns:
        The stage's output: fp32 losses `[b, s]` on the last stage, hidden states `[s, b, h]` elsewhere; and the
        function that sums the losses.
    """
    if micro_batches is None:
        return model(None, None, None), _no_loss
    batch = next(micro_batches)
    for_noise = {"places": batch["places"]} if "places" in batch else {}
    starts, targets = batch.get("document_starts"), {name: batch[name] for name in ("labels", "loss_mask")}
    output = model(batch["tokens"], batch["position_ids"], starts, **targets, **for_noise)
    largest_logits = getattr(getattr(model, "module", model), "largest_logits", None)
    sources = batch.get("sources") if torch.is_grad_enabled() else None  # evaluation counts no sources
    return output, functools.partial(sum_losses, batch["loss_mask"], sources=sources, largest_logits=largest_logits)


def sum_losses(
    loss_mask: Tensor, losses: Tensor, sources: Tensor | None = None, largest_logits: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the summed loss, the number of tokens it counts, and both for the report.

    The division by the tokens of the whole global batch happens once, after all gradients are summed, so that the
    mean does not depend on how the batch was cut into micro-batches and ranks (law L1).

    Args:
        loss_mask: fp32 `[b, s]`, 0 where a token is not counted.
        losses: fp32 `[b, s]`.
        sources: int64 `[samples]`, where each sample comes from; a sample has b / samples rows. With it the report
            also holds `sources` and, fp64 `[2, samples]`, loss and tokens of each sample.
        largest_logits: fp32 `[b, s]`, with a max-z loss, whose gradient `losses` carry already; the report then also
            holds the sum of their squares.
    """
    masked = losses * loss_mask
    total, counted = masked.sum(), loss_mask.sum()
    report = {"loss and tokens": torch.stack([total.detach(), counted])}
    if largest_logits is not None:
        report["squared logits"] = (largest_logits.square() * loss_mask).sum()
    if sources is not None:
        pair = torch.stack([masked.detach(), loss_mask])
        report["sources"] = sources
        report["loss and tokens of samples"] = pair.reshape(2, len(sources), -1).sum(-1, dtype=torch.float64)
    return total, counted.to(torch.int), report


def _no_loss(_: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    raise AssertionError("only the last stage computes a loss, and it reads the data")
