"""Micro-batches as tensors, read ahead by worker processes; the stream does not depend on their number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from megatron_ext.data.sampler import micro_batch_ids
from megatron_ext.data.store.loss_mask import LEARNED_AS_EOD, NOT_LEARNED
from megatron_ext.data.views import Rows, View
from megatron_ext.native_numpy import Int64Array

Planned = tuple[Int64Array, Int64Array, int | None]
"""Sample ids of a micro-batch and their places in the stream, int64 `[b]`, and the length of the sequences to cut them
into."""


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
        document_starts: say for each token where its document begins, for attention that needs to know.
        record: told the sample ids of every micro-batch as it is handed out, not as it is read ahead.
        seq_length: consumed samples -> length of the sequences that the samples of the next global batch are cut
            into, a pure function, asked ahead of time; None leaves samples whole.
        consecutive: a rank takes consecutive micro-batches of a global batch, not every dp-th.
        places: say of each sample how many come before it in the stream of all ranks.
    """

    micro_batch_size: int
    dp_rank: int = 0
    dp_size: int = 1
    num_workers: int = 0
    eod_id: int | None = None
    eod_mask_loss: bool = False
    reset_position_ids: bool = False
    document_starts: bool = False
    record: Callable[[list[int]], None] | None = None
    seq_length: Callable[[int], int] | None = None
    consecutive: bool = False
    places: bool = False


class MicroBatches:
    """Endless iterator over this rank's micro-batches, from one sample of the stream on. Rank-local.

    Each item: tokens int64 `[b, s]`, labels int64 `[b, s]`, loss_mask float32 `[b, s]`, position_ids int64 `[b, s]`,
    document_starts int64 `[b, s]` and places int64 `[b]` where asked for, and sources int64 `[b]` where the view has
    more than one. Samples that are cut into n sequences give rows `[b * n, s / n]`, those of one sample after each
    other, and `[b]` places and sources.

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
        self._view = view
        self._ahead: deque[Planned] = deque()  # the micro-batches that are being read
        self._loader: DataLoader | None = DataLoader(
            _MicroBatchSamples(view),
            batch_sampler=_Batches(view, start_sample, global_batch_size, config, self._ahead),  # type: ignore[arg-type]
            num_workers=config.num_workers,
            collate_fn=_as_read,  # type: ignore[arg-type]  # what __getitems__ gives is the batch already
            multiprocessing_context="fork" if config.num_workers else None,
            generator=torch.Generator(),  # else opening a loader would draw from the training's own generator
        )
        self._rows: Iterator[Rows] | None = None

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
        rows, mask = next(self._rows)
        ids, places, seq_length = self._ahead.popleft()
        if self._config.record is not None:
            self._config.record(ids.tolist())
        learned = None if mask is None else torch.from_numpy(mask)
        batch = to_batch(torch.from_numpy(rows), self._config, learned, seq_length)
        if len(self._view.source_names) > 1:
            batch["sources"] = torch.from_numpy(self._view.sources_of(ids))
        if self._config.places:
            batch["places"] = torch.from_numpy(places)
        return batch

    def close(self) -> None:
        """End the reading processes; nothing can be read afterwards."""
        shut_down = getattr(self._rows, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._rows = None
        self._loader = None


def to_batch(
    rows: torch.Tensor, config: LoaderConfig, learned: torch.Tensor | None = None, seq_length: int | None = None
) -> dict[str, torch.Tensor]:
    """Tokens, labels, loss mask and positions of a micro-batch.

    Position j predicts token j + 1, so what the data says about learning token j + 1 decides the weight of position
    j, and `eod_mask_loss` (which goes by the input token) only takes weight away. Where LEARNED_AS_EOD stands the
    label is `eod_id`; the token that is read stays what it is.

    Where samples are cut into n sequences, each token is predicted once as without the cut, only from less: the first
    one of a sequence is the last label of the sequence before. Positions and documents begin again in each sequence.

    Args:
        rows: int64 `[b, s + 1]`.
        config: the masks wanted.
        learned: uint8 `[b, s + 1]`, codes of loss_mask.py; None when every token is learned.
        seq_length: s / n, tokens of the sequences to cut samples into; None leaves them whole.

    Returns:
        tokens, labels, position_ids int64 and loss_mask float32, all `[b * n, s / n]`; with `config.document_starts`
        also document_starts int64 `[b * n, s / n]`, the place in the row at which each token's document begins. A
        document ends with its `eod_id`.

    Source: megatron-core 0.16.1, gpt_dataset.py, _get_ltor_masks_and_position_ids.
    """
    tokens, labels = _cut(rows[:, :-1], seq_length), _cut(rows[:, 1:], seq_length)
    if learned is None:
        loss_mask = torch.ones(tokens.shape, dtype=torch.float32)
    else:
        codes = _cut(learned[:, 1:], seq_length)
        loss_mask = (codes != NOT_LEARNED).to(torch.float32)
        labels = _with_ends(labels, codes == LEARNED_AS_EOD, config.eod_id)
    position_ids = torch.arange(tokens.shape[1], dtype=torch.int64).expand(tokens.shape).clone()
    batch = {"tokens": tokens, "labels": labels, "loss_mask": loss_mask, "position_ids": position_ids}
    if config.eod_id is not None and (config.eod_mask_loss or config.reset_position_ids or config.document_starts):
        _apply_ends(batch, tokens == config.eod_id, config)
    return batch


def _cut(rows: torch.Tensor, seq_length: int | None) -> torch.Tensor:
    """`[b, s]` as `[b * n, s / n]`, contiguous; s is a multiple of `seq_length` by a rule of the configuration."""
    if seq_length is None or seq_length == rows.shape[1]:
        return rows.contiguous()
    return rows.reshape(len(rows) * (rows.shape[1] // seq_length), seq_length).contiguous()


def _apply_ends(batch: dict[str, torch.Tensor], is_eod: torch.Tensor, config: LoaderConfig) -> None:
    """Change `batch` where documents end, bool `[b, s]`, as `config` asks."""
    if config.eod_mask_loss:
        batch["loss_mask"][is_eod] = 0.0
    if config.reset_position_ids or config.document_starts:
        places = batch["position_ids"]
        begins = torch.zeros_like(places)
        begins[:, 1:] = torch.where(is_eod[:, :-1], places[:, 1:], 0)
        starts = torch.cummax(begins, dim=1).values
        if config.reset_position_ids:
            batch["position_ids"] = places - starts
        if config.document_starts:
            batch["document_starts"] = starts


def _with_ends(labels: torch.Tensor, is_end: torch.Tensor, eod_id: int | None) -> torch.Tensor:
    """`labels` with `eod_id` where `is_end`."""
    if not is_end.any():
        return labels
    assert eod_id is not None, "data that teaches the end of a document needs its id"
    return labels.masked_fill(is_end, eod_id)


def _as_read(rows: Rows) -> Rows:
    return rows


class _MicroBatchSamples(Dataset):
    """A view as the data set that torch's loader asks for all samples of a micro-batch together."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, sample_id: int) -> Int64Array:
        return self._view[sample_id]

    def __getitems__(self, sample_ids: Int64Array) -> Rows:
        return self._view.read(sample_ids)


class _Batches:
    """The sample ids of this rank's micro-batches, without end."""

    def __init__(
        self,
        view: View,
        start_sample: int,
        global_batch_size: Callable[[int], int],
        config: LoaderConfig,
        ahead: deque[Planned],
    ) -> None:
        self._view = view
        self._ahead = ahead
        self._start_sample = start_sample
        self._global_batch_size = global_batch_size
        self._config = config

    def __iter__(self) -> Iterator[Int64Array]:
        consumed, config = self._start_sample, self._config
        while True:
            size = self._global_batch_size(consumed)
            ids = self._view.sample_ids(consumed, size)
            seq_length = None if config.seq_length is None else config.seq_length(consumed)
            both = (ids, np.arange(consumed, consumed + size))
            take = (config.micro_batch_size, config.dp_rank, config.dp_size, config.consecutive)
            mine = [micro_batch_ids(each, *take) for each in both]
            for micro, places in zip(*mine, strict=True):
                self._ahead.append((micro, places, seq_length))
                yield micro
            consumed += size
