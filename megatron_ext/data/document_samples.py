"""Documents as samples: one sequence of the dataset is one sample, padded on the right, never cut or joined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import (
    RowsToFill,
    RunsView,
    read_windows,
    require_existing,
)
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

_SHORTEST = 2  # a token to read and one to predict


class DocumentView(RunsView):
    """Sample i is the i-th sequence of the split: for fine-tuning rows, and for blocks that were packed beforehand.

    A sequence of n tokens has n - 1 to predict; seq_length + 1 - n pads that are never learned follow it. So the
    tokens of the data are those predicted in one epoch and the first of every sequence that has tokens (law L5).

    Args:
        store: the dataset.
        span: the sequences of this split.
        seq_length: tokens in a sample.
        pad_id: fills a sample.
        max_vocab_size: as in WindowView.

    Raises:
        DataError: a sequence has more than seq_length + 1 tokens, or none has two.
    """

    def __init__(
        self, store: IndexedDataset, span: Span, seq_length: int, pad_id: int, max_vocab_size: int | None = None
    ) -> None:
        self._store = store
        self.stores, self.source_names = (store,), (store.prefix,)
        self._span = span
        self._pad_id = pad_id
        self._max_vocab_size = max_vocab_size
        store.check_structure()  # all lengths are looked at anyway
        lengths = store.lengths[span.first : span.last]
        _refuse_long_documents(store.prefix, lengths, seq_length)
        _refuse_or_tell_short_documents(store.prefix, lengths)
        self.seq_length = seq_length
        self.num_tokens = store.token_offset(span.last) - store.token_offset(span.first)
        self.remainder_tokens = int(np.count_nonzero(lengths))
        # a dataset of blocks that fill their samples exactly, all of them learned, is read without masks
        self.has_loss_mask = store.loss_mask is not None or bool(np.any(lengths != seq_length + 1))

    @property
    def target(self) -> OrderTarget:
        """What an order file for this view is made for."""
        span = self._span
        return OrderTarget(self._store.identity, span.first, span.last, self.seq_length, span.size, "documents")

    def __len__(self) -> int:
        """Samples in one epoch: the documents."""
        return self._span.size

    def _bounds(self, sample_id: int) -> tuple[int, int]:
        if not 0 <= sample_id < self._span.size:
            raise IndexError(f"sample {sample_id} of {self._span.size}")
        sequence = self._span.first + int(sample_id)
        begin = self._store.token_offset(sequence)
        return begin, begin + int(self._store.lengths[sequence])

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples to chosen rows of a batch, all of them in one native call."""
        require_existing(sample_ids, self._span.size)
        bounds = self._store.sequence_bounds(self._span.first + sample_ids)
        read_windows(self._store, bounds, self._pad_id, batch, self._max_vocab_size)


def _refuse_long_documents(prefix: str, lengths: NDArray[np.int32], seq_length: int) -> None:
    too_long = int(np.count_nonzero(lengths > seq_length + 1))
    if too_long:
        raise DataError(
            f"{too_long} of {len(lengths)} documents of a part of {prefix} do not fit a sample; the longest has "
            f"{int(lengths.max())} tokens",
            f"With --dataset-packing documents a document has at most --seq-length {seq_length} + 1 tokens; it is "
            "never cut",
            "Raise --seq-length, leave long documents out, or pack them into blocks with tools/pack_dataset.py",
        )


def _refuse_or_tell_short_documents(prefix: str, lengths: NDArray[np.int32]) -> None:
    too_short = int(np.count_nonzero(lengths < _SHORTEST))
    if too_short == len(lengths):
        raise DataError(
            f"no document of a part of {prefix} has {_SHORTEST} tokens",
            "A document needs a token to read and one to predict",
            "Use other data, or another --split",
        )
    if too_short:
        log.warn_once(
            f"{prefix}: {too_short} of {len(lengths)} documents have less than {_SHORTEST} tokens; as samples they "
            "teach nothing"
        )
