"""The difficulty of samples from the scores of documents, block by block."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.document_parts import document_at
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.native_numpy import Int64Array

_SAMPLES = 1 << 18
_DOCUMENTS = 1 << 18


def sample_difficulties(
    store: IndexedDataset,
    target: OrderTarget,
    scores: NDArray[np.float32],
    samples: int = _SAMPLES,
    documents: int = _DOCUMENTS,
) -> Iterator[NDArray[np.float32]]:
    """Difficulties of samples 0, 1, 2, ..., float32 `[n]` at a time.

    A sample that is a document has the document's score. A window of seq_length tokens has the mean of the scores of
    the documents it reads from, weighted by the tokens it reads of each (the label beyond its end does not count).

    Args:
        store: the dataset.
        target: what a sample is.
        scores: float32 `[documents]`.
        samples: samples at a time, at most.
        documents: documents at a time, at most; the values do not depend on either.
    """
    if target.packing == "documents":
        for first in range(target.first_sequence, target.last_sequence, samples):
            yield scores[_documents_of(store, first, min(first + samples, target.last_sequence))]
        return
    first_token, last_token = store.token_offset(target.first_sequence), store.token_offset(target.last_sequence)
    first, document = 0, document_at(store, first_token)
    while first < target.num_samples:
        begin = first_token + first * target.seq_length
        document = document_at(store, begin, document)
        last = min(first + samples, target.num_samples)
        taken = min(document + documents, store.num_documents)
        known = int(store.document_offsets(taken, taken)[0])  # tokens before this one belong to the documents taken
        last = max(first + 1, min(last, first + (known - begin) // target.seq_length))
        end = min(first_token + last * target.seq_length, last_token)
        taken = max(taken, document_at(store, end - 1, document) + 1)
        starts = np.arange(begin, end, target.seq_length, dtype=np.int64)
        yield _means(starts, end, store.document_offsets(document, taken), scores[document:taken])
        first = last


def _means(starts: Int64Array, end: int, offsets: Int64Array, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean score over the tokens of each window, float32 `[windows]`.

    Args:
        starts: int64 `[windows]`, first token of each window; it ends where the next begins, the last one at `end`.
        end: one past the last token.
        offsets: int64 `[documents + 1]`, where documents begin and end; together they cover the windows.
        scores: float32 `[documents]`.
    """
    inside = offsets[(offsets > starts[0]) & (offsets < end)]
    pieces = np.unique(np.concatenate([starts, inside]))
    weights = np.diff(np.append(pieces, end))
    weighted = scores[np.searchsorted(offsets, pieces, side="right") - 1].astype(np.float64) * weights
    # reduceat adds up each window alone, so the sum does not depend on what else is in the block
    sums = np.add.reduceat(weighted, np.searchsorted(pieces, starts))
    return (sums / np.diff(np.append(starts, end))).astype(np.float32)


def _documents_of(store: IndexedDataset, first: int, last: int) -> Int64Array:
    """The documents of sequences first .. last-1, int64 `[last - first]`."""
    boundaries = store.document_boundaries
    low, high = bisect_right(boundaries, first) - 1, bisect_right(boundaries, last - 1)
    inside = np.clip(boundaries[low : high + 1], first, last)
    return np.repeat(np.arange(low, high, dtype=np.int64), inside[1:] - inside[:-1])
