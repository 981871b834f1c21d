"""Views: samples of seq_length + 1 tokens, cut from one split of one dataset, in an order."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from megatron_ext.data.indexed import IndexedDataset
from megatron_ext.data.order import Order
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array


class View(ABC):
    """An endless, deterministic stream of samples.

    Attributes:
        seq_length: tokens in a sample, without the one label more.
        num_tokens: tokens of the data behind the view.
        remainder_tokens: tokens that no sample of an epoch predicts: the first one and the tail (law L5).
    """

    seq_length: int
    num_tokens: int
    remainder_tokens: int

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


class WindowView(View):
    """Windows of seq_length + 1 tokens, seq_length apart, over the split's documents laid end to end.

    Args:
        store: the dataset.
        span: the sequences of this split.
        seq_length: tokens in a sample.
        max_vocab_size: ids of every sample are checked against it; None where the manifest already vouches for them.

    Raises:
        DataError: the split has no complete sample.
    """

    def __init__(self, store: IndexedDataset, span: Span, seq_length: int, max_vocab_size: int | None = None) -> None:
        self._store = store
        self._span = span
        self._first_token = store.token_offset(span.first)
        self.seq_length = seq_length
        self.num_tokens = store.token_offset(span.last) - self._first_token
        self._num_samples = max(0, (self.num_tokens - 1) // seq_length)
        self.remainder_tokens = self.num_tokens - self._num_samples * seq_length
        self._max_vocab_size = max_vocab_size
        self._order: Order | None = None
        require_one_sample(store.prefix, self.num_tokens, seq_length)

    @property
    def target(self) -> OrderTarget:
        """What an order file for this view is made for."""
        span = self._span
        return OrderTarget(self._store.identity, span.first, span.last, self.seq_length, self._num_samples)

    def ordered_by(self, order: Order) -> WindowView:
        """Set the order and return the view."""
        self._order = order
        return self

    def __len__(self) -> int:
        """Samples in one epoch."""
        return self._num_samples

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Ids of the samples at places start .. start+count-1, int64 `[count]`."""
        assert self._order is not None, "ordered_by comes first"
        return self._order.sample_ids(start, count)

    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`."""
        if not 0 <= sample_id < self._num_samples:
            raise IndexError(f"sample {sample_id} of {self._num_samples}")
        begin = self._first_token + int(sample_id) * self.seq_length
        sample = self._store.tokens[begin : begin + self.seq_length + 1].astype(np.int64)
        check_vocabulary(sample, self._max_vocab_size, self._store.prefix)
        return sample


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
