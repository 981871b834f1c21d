"""Views: samples of seq_length + 1 tokens, cut from one split of one dataset, in an order, with their loss masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.order import Order
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.loss_mask import LEARNED, NOT_LEARNED
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

AnyInteger = TypeVar("AnyInteger", np.int64, np.uint8)


class View(ABC):
    """An endless, deterministic stream of samples.

    Attributes:
        seq_length: tokens in a sample, without the one label more.
        num_tokens: tokens of the data behind the view.
        remainder_tokens: tokens that no sample of an epoch predicts: the first one and the tail (law L5). A token
            that is predicted without weight, because the loss mask says so, is none of them.
        has_loss_mask: whether `loss_mask` gives one; else every token of every sample is learned.
    """

    seq_length: int
    num_tokens: int
    remainder_tokens: int
    has_loss_mask: bool = False

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


class WindowView(OrderedView):
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

    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`."""
        begin, end = self._bounds(sample_id)
        sample = self._store.tokens[begin:end].astype(np.int64)
        check_vocabulary(sample, self._max_vocab_size, self._store.prefix)
        return sample if self._pad_id is None else padded(sample, self.seq_length + 1, self._pad_id)

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]`; None when all of them are."""
        begin, end = self._bounds(sample_id)
        return padded_loss_mask(self._store.loss_mask, begin, end, self.seq_length + 1)

    def _bounds(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._num_samples:
            raise IndexError(f"sample {sample_id} of {self._num_samples}")
        begin = self._first_token + int(sample_id) * self.seq_length
        return begin, min(begin + self.seq_length + 1, self._last_token)


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


def check_vocabulary(sample: Int64Array, max_vocab_size: int | None, prefix: str) -> None:
    """Raise DataError when a token id lies outside [0, max_vocab_size); None checks nothing."""
    if max_vocab_size is not None and (sample.min() < 0 or sample.max() >= max_vocab_size):
        raise DataError(
            f"{prefix}.bin holds token ids from {sample.min()} to {sample.max()}",
            f"The tokenizer of this run has ids 0 to {max_vocab_size - 1}",
            "Use the tokenizer the data was made with",
        )
