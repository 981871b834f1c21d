"""The mean loss on the validation or test view: always the same samples, whatever the layout."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from megatron_ext.training.components import Components, gathered_parameters
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import forward_backward


def evaluation_batches(num_samples: int, global_batch_size: int, eval_iters: int) -> int:
    """Return how many global batches an evaluation takes: `--eval-iters`, or what the view fills, at least one."""
    return max(1, min(eval_iters, num_samples // global_batch_size))


def evaluate(parts: Components, split: str = "valid") -> float:
    """Return the mean loss per learned token over the first samples of a view. Collective over all ranks.

    Every evaluation of a run sees the same samples, so its values can be compared; a view with less than one global
    batch starts over. The mean of samples without any learned token is NaN.

    Args:
        parts: model and datasets.
        split: `valid` or `test`.
    """
    view = getattr(parts.datasets, split)
    global_batch_size = parts.run.global_batch_size
    batches = evaluation_batches(len(view), global_batch_size, parts.run.train.eval_iters)
    loss_sum = counted_tokens = 0.0
    with _evaluation_mode(parts), open_readers(parts, view, 0, lambda _: global_batch_size) as readers:
        for _ in range(batches):
            loss, tokens, *_ = forward_backward(parts, readers, global_batch_size, forward_only=True)
            loss_sum, counted_tokens = loss_sum + loss, counted_tokens + tokens
    return loss_sum / counted_tokens if counted_tokens else math.nan


@contextlib.contextmanager
def _evaluation_mode(parts: Components) -> Iterator[None]:
    for chunk in parts.chunks:
        chunk.eval()
    try:
        with torch.no_grad(), gathered_parameters(parts):
            yield
    finally:
        for chunk in parts.chunks:
            chunk.train()
