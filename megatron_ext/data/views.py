"""Views: samples of seq_length + 1 tokens, cut from one split of one dataset, in an order, with their loss masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_ext import native
from megatron_ext.data.order import Order
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.loss_mask import LEARNED, NOT_LEARNED
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

AnyInteger = TypeVar("AnyInteger", np.int64, np.uint8)
Rows = tuple[Int64Array, NDArray[np.uint8] | None]
"""The samples of a micro-batch: tokens int64 `[b, s + 1]` and their loss mask, uint8 `[b, s + 1]`, or None."""


@dataclass(frozen=True)
class TokenRange:
    """Tokens begin .. end-1 of a dataset."""

    store: IndexedDataset
    begin: int
    end: int


@dataclass(frozen=True)
class RowsToFill:
    """Where samples go: sample i to row rows[i], int64 `[b]`, of tokens int64 and mask uint8 (or None) `[h, s + 1]`."""

    rows: Int64Array
    tokens: Int64Array
    mask: NDArray[np.uint8] | None


class View(ABC):
    """An endless, deterministic stream of samples.

    Attributes:
        seq_length: tokens in a sample, without the one label more.
        num_tokens: tokens of the data behind the view.
        remainder_tokens: tokens that no sample of an epoch predicts: the first one and the tail (law L5). A token
            that is predicted without weight, because the loss mask says so, is none of them.
        has_loss_mask: whether `loss_mask` gives one; else every token of every sample is learned.
        source_names: what the datasets that samples come from are called, at least one.
        stores: those datasets.
    """

    seq_length: int
    num_tokens: int
    remainder_tokens: int
    has_loss_mask: bool = False
    source_names: tuple[str, ...] = ("",)
    stores: tuple[IndexedDataset, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Samples in one epoch."""

    @abstractmethod
    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Ids of the samples at places start .. start+count-1 of the stream, int64 `[count]`.

        Pure: it depends on data, order and seed alone. Places have no end; a new epoch begins by itself.
        """

    @abstractmethod
    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`; labels are the same tokens shifted by one."""

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]` (codes of loss_mask.py).

        None when all of them are; always None where `has_loss_mask` is false.
        """
        return None

    def read(self, sample_ids: Int64Array) -> Rows:
        """The samples of a micro-batch, `[b]` ids: tokens, and their loss mask where the view has one."""
        shape = (len(sample_ids), self.seq_length + 1)
        mask = np.empty(shape, np.uint8) if self.has_loss_mask else None
        tokens = np.empty(shape, np.int64)
        self.read_into(sample_ids, RowsToFill(np.arange(len(sample_ids), dtype=np.int64), tokens, mask))
        return tokens, mask

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples, `[b]` ids, to chosen rows of a batch; their mask is LEARNED where this view has none."""
        for sample_id, row in zip(sample_ids.tolist(), batch.rows.tolist(), strict=True):
            batch.tokens[row] = self[sample_id]
            if batch.mask is not None:
                learned = self.loss_mask(sample_id)
                batch.mask[row] = LEARNED if learned is None else learned

    def sources_of(self, sample_ids: Int64Array) -> Int64Array:
        """Which of `source_names` each sample comes from, int64 `[b]`."""
        return np.zeros(len(sample_ids), np.int64)

    @abstractmethod
    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data, in their order; padding stands nowhere."""


class OrderedView(View):
    """A view whose sample ids 0 .. len-1 come in an order given from outside."""

    _order: Order | None = None

    @property
    @abstractmethod
    def target(self) -> OrderTarget:
        """What an order file for this view is made for."""

    def ordered_by(self, order: Order) -> Self:
        """Set the order and return the view."""
        self._order = order
        return self

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Ids of the samples at places start .. start+count-1, int64 `[count]`."""
        assert self._order is not None, "ordered_by comes first"
        return self._order.sample_ids(start, count)

    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`."""
        return self.read(np.array([sample_id], np.int64))[0][0]


class RunsView(OrderedView):
    """An ordered view of one dataset, each of whose samples is one run of its tokens."""

    _store: IndexedDataset

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]`; None when all of them are."""
        begin, end = self._bounds(sample_id)
        return padded_loss_mask(self._store.loss_mask, begin, end, self.seq_length + 1)

    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data."""
        return [TokenRange(self._store, *self._bounds(sample_id))]

    @abstractmethod
    def _bounds(self, sample_id: int) -> tuple[int, int]:
        """Begin and end of one sample in the dataset's tokens; what it lacks to its length is padding."""


class WindowView(RunsView):
    """Windows of seq_length + 1 tokens, seq_length apart, over the split's documents laid end to end.

    Args:
        store: the dataset.
        span: the sequences of this split.
        seq_length: tokens in a sample.
        max_vocab_size: ids of every sample are checked against it; None where the manifest already vouches for them.
        pad_id: fills the last sample of an epoch, which is never learned there; None leaves the tail out instead.

    Raises:
        DataError: the split has no complete sample, or with `pad_id` nothing to predict.
    """

    def __init__(
        self,
        store: IndexedDataset,
        span: Span,
        seq_length: int,
        max_vocab_size: int | None = None,
        pad_id: int | None = None,
    ) -> None:
        self._store = store
        self._span = span
        self.stores, self.source_names = (store,), (store.prefix,)
        self._first_token = store.token_offset(span.first)
        self._last_token = store.token_offset(span.last)
        self.seq_length = seq_length
        self.num_tokens = self._last_token - self._first_token
        predicted = max(0, self.num_tokens - 1)
        self._num_samples = predicted // seq_length if pad_id is None else -(-predicted // seq_length)
        self.remainder_tokens = self.num_tokens - min(predicted, self._num_samples * seq_length)
        self._pad_id = pad_id
        self._max_vocab_size = max_vocab_size
        self.has_loss_mask = store.loss_mask is not None or predicted < self._num_samples * seq_length
        require_one_sample(store.prefix, self.num_tokens, seq_length if pad_id is None else 1)

    @property
    def target(self) -> OrderTarget:
        """What an order file for this view is made for."""
        span = self._span
        return OrderTarget(self._store.identity, span.first, span.last, self.seq_length, self._num_samples)

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._num_samples

    def _bounds(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._num_samples:
            raise IndexError(f"sample {sample_id} of {self._num_samples}")
        begin = self._first_token + int(sample_id) * self.seq_length
        return begin, min(begin + self.seq_length + 1, self._last_token)

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples to chosen rows of a batch, all of them in one native call."""
        require_existing(sample_ids, self._num_samples)
        begins = self._first_token + sample_ids * self.seq_length
        ends = np.minimum(begins + self.seq_length + 1, self._last_token)
        read_windows(self._store, (begins, ends), self._pad_id or 0, batch, self._max_vocab_size)


def read_windows(
    store: IndexedDataset,
    bounds: tuple[Int64Array, Int64Array],
    pad_id: int,
    batch: RowsToFill,
    max_vocab_size: int | None,
) -> None:
    """Write runs of tokens, padded on the right, and their masks to rows of a batch.

    Args:
        store: the dataset.
        bounds: where each run begins and ends in the dataset's tokens, int64 `[b]` each.
        pad_id: fills a row after its run.
        batch: the rows.
        max_vocab_size: the ids that are read are checked against it; None checks nothing.

    Raises:
        DataError: an id lies outside [0, max_vocab_size).
    """
    extent = native.gather_windows(
        (store.tokens, store.loss_mask),
        *bounds,
        pad_id,
        (batch.rows, batch.tokens, batch.mask),
        max_vocab_size is not None,
    )
    check_extent(extent, max_vocab_size, store.prefix)


def require_existing(sample_ids: Int64Array, num_samples: int) -> None:
    """Raise IndexError when a sample id lies outside [0, num_samples)."""
    wrong = (sample_ids < 0) | (sample_ids >= num_samples)
    if wrong.any():
        raise IndexError(f"sample {sample_ids[int(wrong.argmax())]} of {num_samples}")


def padded(sample: NDArray[AnyInteger], length: int, pad: int) -> NDArray[AnyInteger]:
    """`sample` itself when it has `length` elements, else a longer array filled with `pad` on the right."""
    if len(sample) == length:
        return sample
    whole = np.full(length, pad, sample.dtype)
    whole[: len(sample)] = sample
    return whole


def padded_loss_mask(mask: NDArray[np.uint8] | None, begin: int, end: int, length: int) -> NDArray[np.uint8] | None:
    """Codes begin .. end-1 of a dataset's mask, padded with NOT_LEARNED to uint8 `[length]`; pads are never learned.

    Returns:
        None when the dataset has no mask and there is nothing to pad.
    """
    if mask is not None:
        return padded(mask[begin:end], length, NOT_LEARNED)
    if end - begin == length:
        return None
    return padded(np.full(end - begin, LEARNED, np.uint8), length, NOT_LEARNED)


def require_one_sample(prefix: str, num_tokens: int, seq_length: int) -> None:
    """Raise DataError when a split has fewer tokens than one sample needs."""
    if num_tokens < seq_length + 1:
        raise DataError(
            f"a part of {prefix} has {num_tokens} tokens",
            f"One sample of --seq-length {seq_length} needs {seq_length + 1}",
            "Use more data, a shorter --seq-length, or another --split",
        )


def check_extent(extent: tuple[int, int], max_vocab_size: int | None, prefix: str) -> None:
    """Raise DataError when ids from extent[0] to extent[1] lie outside [0, max_vocab_size); None checks nothing."""
    smallest, largest = extent
    if max_vocab_size is not None and (smallest < 0 or largest >= max_vocab_size):
        raise DataError(
            f"{prefix}.bin holds token ids from {smallest} to {largest}",
            f"The tokenizer of this run has ids 0 to {max_vocab_size - 1}",
            "Use the tokenizer the data was made with",
        )
