"""Micro-batches as tensors, read ahead by worker processes; the stream does not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_ext.data.sampler import micro_batch_ids
from megatron_ext.data.views import View
from megatron_ext.native_numpy import Int64Array


@dataclass(frozen=True)
class LoaderConfig:
    """How one rank reads.

    Attributes:
        micro_batch_size: b, samples in a micro-batch.
        dp_rank: this data-parallel rank.
        dp_size: number of data-parallel ranks.
        num_workers: reading processes; 0 reads in this one.
        eod_id: the id that ends a document.
        eod_mask_loss: no loss where the input token is `eod_id`.
        reset_position_ids: positions begin again after each `eod_id`.
    """

    micro_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    num_workers: int = 0
    eod_id: int | None = None
    eod_mask_loss: bool = False
    reset_position_ids: bool = False


class MicroBatches:
    """Endless iterator over this rank's micro-batches, from one sample of the stream on. Rank-local.

    Each item: tokens int64 `[b, s]`, labels int64 `[b, s]`, loss_mask float32 `[b, s]`, position_ids int64 `[b, s]`.

    Args:
        view: the samples.
        start_sample: samples consumed before, by all ranks together.
        global_batch_size: consumed samples -> size of the next global batch, a pure function; it is asked ahead of
            the time the batch is used.
        config: how this rank reads.
    """

    def __init__(
        self, view: View, start_sample: int, global_batch_size: Callable[[int], int], config: LoaderConfig
    ) -> None:
        self._config = config
        self._loader: DataLoader | None = DataLoader(
            _Samples(view),
            batch_sampler=_Batches(view, start_sample, global_batch_size, config),  # type: ignore[arg-type]
            num_workers=config.num_workers,
            collate_fn=np.stack,
            multiprocessing_context="fork" if config.num_workers else None,
            generator=torch.Generator(),  # else opening a loader would draw from the training's own generator
        )
        self._rows: Iterator[Int64Array] | None = None

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        """The next micro-batch.

        Raises:
            StopIteration: after `close`.
        """
        if self._loader is None:
            raise StopIteration
        if self._rows is None:
            self._rows = iter(self._loader)
        return to_batch(torch.from_numpy(next(self._rows)), self._config)

    def close(self) -> None:
        """End the reading processes; nothing can be read afterwards."""
        shut_down = getattr(self._rows, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._rows = None
        self._loader = None


def to_batch(rows: torch.Tensor, config: LoaderConfig) -> dict[str, torch.Tensor]:
    """Tokens, labels, loss mask and positions of a micro-batch.

    Args:
        rows: int64 `[b, s + 1]`.
        config: the masks wanted.

    Returns:
        tokens, labels, position_ids int64 and loss_mask float32, all `[b, s]`.

    Source: megatron-core 0.16.1, gpt_dataset.py, _get_ltor_masks_and_position_ids.
    """
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    is_eod = tokens == config.eod_id if config.eod_id is not None else torch.zeros_like(tokens, dtype=torch.bool)
    loss_mask = torch.ones(tokens.shape, dtype=torch.float32)
    if config.eod_mask_loss:
        loss_mask[is_eod] = 0.0
    places = torch.arange(tokens.shape[1], dtype=torch.int64).expand(tokens.shape)
    position_ids = places.clone()
    if config.reset_position_ids:
        begins = torch.zeros_like(tokens)
        begins[:, 1:] = torch.where(is_eod[:, :-1], places[:, 1:], 0)
        position_ids -= torch.cummax(begins, dim=1).values
    return {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}


class _Samples(Dataset):
    """A view as the data set that torch's loader asks for samples by id."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, sample_id: int) -> Int64Array:
        return self._view[sample_id]


class _Batches:
    """The sample ids of this rank's micro-batches, without end."""

    def __init__(
        self, view: View, start_sample: int, global_batch_size: Callable[[int], int], config: LoaderConfig
    ) -> None:
        self._view = view
        self._start_sample = start_sample
        self._global_batch_size = global_batch_size
        self._config = config

    def __iter__(self) -> Iterator[list[int]]:
        consumed, config = self._start_sample, self._config
        while True:
            size = self._global_batch_size(consumed)
            ids = self._view.sample_ids(consumed, size)
            for micro in micro_batch_ids(ids, config.micro_batch_size, config.dp_rank, config.dp_size):
                yield micro.tolist()
            consumed += size
