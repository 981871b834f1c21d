"""Numpy twins of the compiled operations on orders and samples: mixtures, the sample index, gathering into a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_ext.native_numpy import Int64Array

Source = tuple[NDArray, NDArray[np.uint8] | None]
"""What is read: tokens `[n]` of an integer type, and what is learned at each of them uint8 `[n]`; None for all."""
Target = tuple[Int64Array, Int64Array, NDArray[np.uint8] | None]
"""Where it goes: sample i into row rows[i], int64 `[b]`, of tokens int64 `[height, width]` and a mask uint8 or None."""
DrawnDocuments = tuple[NDArray[np.int32], Int64Array, NDArray, NDArray]
"""Lengths int32 and byte offsets int64 of all sequences `[S]`; the drawing order int32 or int64 `[d]`; its index."""

SPREAD_BITS = 53
"""Bits of the points and places of a spread mixture: thresholds rise from 0 to 2^53."""

_MAX_DATASETS = 32767
_LARGEST_INT32 = 2**31 - 1
_NOT_LEARNED, _LEARNED = 0, 1


def blend(
    weights: NDArray[np.float64], drawn: Int64Array, start: int, count: int
) -> tuple[NDArray[np.int16], Int64Array, Int64Array]:
    """Places start .. start+count-1 of a weighted mixture: (dataset int16, sample int64, drawn afterwards int64).

    At each place the dataset farthest behind its share is drawn; of equal ones the first.

    Args:
        weights: float64 `[k]`, finite, sum 1.
        drawn: int64 `[k]`, samples drawn from each dataset before `start`; not changed.
        start: the first place.
        count: the number of places.

    Raises:
        ValueError: not 1 to 32767 datasets, a weight that is not finite, or a negative place.

    Source: megatron-core 0.16.1, helpers.cpp, build_blending_indices (same floating-point operations).
    """
    weights = np.asarray(weights, np.float64)
    after = np.array(drawn, np.int64)
    _check_blend(len(weights), len(after), start, count)
    if not np.isfinite(weights).all():
        raise ValueError("blend: weights are finite numbers")
    dataset, sample = np.empty(count, np.int16), np.empty(count, np.int64)
    for n in range(count):
        best = int(np.argmax(weights * max(float(start + n), 1.0) - after))
        dataset[n], sample[n] = best, after[best]
        after[best] += 1
    return dataset, sample, after


def blend_all(
    sizes: Int64Array, drawn: Int64Array, start: int, count: int
) -> tuple[NDArray[np.int16], Int64Array, Int64Array]:
    """Places of a mixture that draws every dataset as often as it has samples, then no more; as `blend` otherwise.

    Args:
        sizes: int64 `[k]`, samples of each dataset.
        drawn: int64 `[k]`, samples drawn from each dataset before `start`; not changed.
        start: the first place.
        count: the number of places, at most the samples left.

    Raises:
        ValueError: not 1 to 32767 datasets, a count outside its dataset, or more places than samples left.

    Source: megatron-core 0.16.1, helpers.cpp, build_exhaustive_blending_indices (same floating-point operations).
    """
    sizes, after = np.asarray(sizes, np.int64), np.array(drawn, np.int64)
    _check_blend(len(sizes), len(after), start, count)
    if np.any(after < 0) or np.any(after > sizes):
        raise ValueError("blend: a count lies outside its dataset")
    if count > int((sizes - after).sum()):
        raise ValueError("blend: more samples are asked for than are left")
    weights = sizes / max(float(sizes.sum()), 1.0)
    counts = np.where(after < sizes, after.astype(np.float64), np.inf)
    dataset, sample = np.empty(count, np.int16), np.empty(count, np.int64)
    for n in range(count):
        best = int(np.argmax(weights * max(float(start + n), 1.0) - counts))
        dataset[n], sample[n] = best, after[best]
        after[best] += 1
        counts[best] = after[best] if after[best] < sizes[best] else np.inf
    return dataset, sample, after


def spread(thresholds: Int64Array, start: int, count: int) -> tuple[NDArray[np.int16], Int64Array]:
    """Places start .. start+count-1 of a mixture without state: (dataset int16, rank int64), `[count]` each.

    Place n belongs to the dataset between whose thresholds its van der Corput point lies (n with its 53 bits in
    reverse order); the rank says how many of the dataset's samples stand before n. After n places dataset i has been
    drawn n (t_(i+1) - t_i) / 2^53 times, to within the number of set bits of n.

    Args:
        thresholds: int64 `[k + 1]`, rising from 0 to 2^53.
        start: the first place.
        count: the number of places.

    Raises:
        ValueError: not 1 to 32767 datasets, thresholds that do not rise so, or a place outside [0, 2^53).

    Source: van der Corput 1935; Niederreiter 1992, "Random number generation and quasi-Monte Carlo methods", 3.1.
    """
    thresholds = np.asarray(thresholds, np.int64)
    end = 1 << SPREAD_BITS
    if not 1 <= len(thresholds) - 1 <= _MAX_DATASETS:
        raise ValueError(f"spread: 1 to {_MAX_DATASETS} datasets")
    if thresholds[0] != 0 or thresholds[-1] != end or np.any(np.diff(thresholds) < 0):
        raise ValueError("spread: thresholds rise from 0 to 2^53")
    if start < 0 or count < 0 or start > end - count:
        raise ValueError("spread: places lie between 0 and 2^53")
    points = _reversed_bits(np.arange(start, start + count, dtype=np.uint64)).astype(np.int64)
    dataset = np.searchsorted(thresholds[:-1], points, side="right") - 1
    rank = np.empty(count, np.int64)
    before = np.diff(spread_counts(start, thresholds))
    for i in np.unique(dataset).tolist():
        here = np.flatnonzero(dataset == i)
        rank[here] = before[i] + np.arange(len(here))
    return dataset.astype(np.int16), rank


def spread_counts(place: int, thresholds: Int64Array) -> Int64Array:
    """How many of the places below `place` have a van der Corput point below each threshold, int64 `[j]`.

    Args:
        place: 0 to 2^53.
        thresholds: int64 `[j]`, each 0 to 2^53.

    Raises:
        ValueError: a number lies outside.

    Source: as `spread`. The places below n are a block of 2^b for every set bit b of n, and the points of a block are
    a regular grid of spacing 2^(53 - b).
    """
    thresholds = np.asarray(thresholds, np.int64)
    if not 0 <= place <= 1 << SPREAD_BITS:
        raise ValueError("spread: places lie between 0 and 2^53")
    if np.any(thresholds < 0) or np.any(thresholds > 1 << SPREAD_BITS):
        raise ValueError("spread: thresholds lie between 0 and 2^53")
    if place == 1 << SPREAD_BITS:
        return thresholds.copy()
    upper = int(_reversed_bits(np.array([place], np.uint64))[0])
    counts = np.zeros(len(thresholds), np.int64)
    for bit in range(place.bit_length()):
        if place >> bit & 1:
            spacing = 1 << (SPREAD_BITS - bit)
            counts += thresholds // spacing + (upper % (spacing // 2) < thresholds % spacing)
    return counts


def sample_index(
    lengths: NDArray[np.int32],
    documents: NDArray,
    seq_length: int,
    first_document: int = 0,
    first_token: int = 0,
    wide: bool = False,
) -> NDArray:
    """Where the samples begin in documents laid end to end: rows (place in the drawing order, token of that document).

    Sample k begins at token k * seq_length of the text; there is a row for each k whose token exists, so n samples of
    seq_length + 1 tokens have n + 1 rows. Row 0 is (0, 0) even when the first document is empty. Whole numbers only,
    and any block of documents can be indexed by itself: the rows of the blocks in order are those of the whole.

    Args:
        lengths: int32 `[n]`, tokens of each document.
        documents: int32 or int64 `[d]`, the drawing order.
        seq_length: tokens in a sample, without the one label more.
        first_document: documents of the drawing order before this block.
        first_token: tokens before this block.
        wide: rows are int64, else int32.

    Returns:
        int32 or int64 `[samples, 2]`.

    Raises:
        ValueError: a length is negative, or int32 rows cannot hold the places.
        IndexError: a document does not exist.

    Source: megatron-core 0.16.1, helpers.cpp, build_sample_idx (its last partial sample is dropped).
    """
    if seq_length < 1 or first_document < 0 or first_token < 0:
        raise ValueError("sample_index: seq_length is at least 1, and the place is not negative")
    if documents.dtype not in (np.int32, np.int64) or documents.ndim != 1:
        raise ValueError("sample_index: documents are one row of int32 or int64")
    if not wide and first_document + len(documents) > _LARGEST_INT32:
        raise ValueError("sample_index: so many documents need int64 rows")
    if documents.size and (documents.min() < 0 or documents.max() >= len(lengths)):
        raise IndexError("sample_index: a document does not exist")
    drawn = np.asarray(lengths, np.int32)[documents]
    if np.any(drawn < 0):
        raise ValueError("sample_index: a length is negative")
    ends = np.cumsum(drawn, dtype=np.int64) + first_token
    end = int(ends[-1]) if len(ends) else first_token
    starts = np.arange(max(1, -(-first_token // seq_length)), -(-end // seq_length), dtype=np.int64) * seq_length
    places = np.searchsorted(ends, starts, side="right")
    rows = np.stack([places + first_document, starts - (ends[places] - drawn[places])], axis=1)
    if first_document == 0 and len(documents):
        rows = np.concatenate([np.zeros((1, 2), np.int64), rows])
    return rows.astype(np.int64 if wide else np.int32)


def gather_windows(
    source: Source, begins: Int64Array, ends: Int64Array, pad: int, target: Target, with_extent: bool = False
) -> tuple[int, int]:
    """Write tokens[begins[i] : ends[i]], filled up with `pad` on the right, to row rows[i] of the batch, and its mask.

    A pad is not learned; without a stored mask every token is.

    Args:
        source: tokens and mask.
        begins: int64 `[b]`.
        ends: int64 `[b]`; a run fits its row.
        pad: the token that fills a row.
        target: where the samples go.
        with_extent: look at the ids.

    Returns:
        The smallest id, or 0, and the largest, or -1, of those that were read; (0, -1) without `with_extent`.

    Raises:
        IndexError: a run lies outside the tokens or does not fit its row, or a row lies outside the batch.
        ValueError: a shape or type is another.
    """
    writer = _Writer(source, target)
    if len(begins) != len(ends) or len(begins) != len(target[0]):
        raise ValueError("gather: begins, ends and rows differ in length")
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        if begin < 0 or end < begin or end - begin > writer.width:
            raise IndexError("gather: a run lies outside the tokens or does not fit its row")
        writer.choose_row(i)
        writer.run(begin, end - begin, 0)
        writer.fill(end - begin, pad)
    return writer.extent if with_extent else (0, -1)


def gather_documents(
    source: Source, order: DrawnDocuments, samples: Int64Array, target: Target, with_extent: bool = False
) -> tuple[int, int]:
    """Write sample samples[i] of documents laid end to end in drawing order to row rows[i] of the batch, and its mask.

    Args:
        source: tokens and mask.
        order: the documents, and where samples begin among them (see `sample_index`).
        samples: int64 `[b]`.
        target: where the samples go; its width is the tokens of a sample.
        with_extent: look at the ids.

    Returns:
        As `gather_windows`.

    Raises:
        IndexError: a sample or document does not exist, a sample reaches beyond the documents, a row lies outside the
            batch, or a document does not end where the next one begins.
        ValueError: a shape or type is another.
    """
    writer = _Writer(source, target)
    if len(samples) != len(target[0]):
        raise ValueError("gather: one row per sample is needed")
    documents, index = order[2], order[3]
    for i, sample in enumerate(samples.tolist()):
        if not 0 <= sample < len(index):
            raise IndexError("gather: a sample does not exist")
        writer.choose_row(i)
        place, offset, written = int(index[sample, 0]), int(index[sample, 1]), 0
        while written < writer.width:
            if not 0 <= place < len(documents):
                raise IndexError("gather: a sample reaches beyond the documents")
            begin, end = _document_bounds(source[0], order, int(documents[place]))
            if not 0 <= offset <= end - begin:
                raise IndexError("gather: a sample begins outside its document")
            count = min(end - begin - offset, writer.width - written)
            writer.run(begin + offset, count, written)
            written, offset, place = written + count, 0, place + 1
    return writer.extent if with_extent else (0, -1)


def _check_blend(num_datasets: int, num_counts: int, start: int, count: int) -> None:
    if not 1 <= num_datasets <= _MAX_DATASETS:
        raise ValueError(f"blend: 1 to {_MAX_DATASETS} datasets")
    if num_counts != num_datasets:
        raise ValueError("blend: one count per dataset is needed")
    if start < 0 or count < 0:
        raise ValueError("blend: start and count must not be negative")


def _document_bounds(tokens: NDArray, order: DrawnDocuments, document: int) -> tuple[int, int]:
    lengths, pointers = order[0], order[1]
    if not 0 <= document < len(lengths):
        raise IndexError("gather: a document does not exist")
    size = tokens.itemsize
    length, pointer = int(lengths[document]), int(pointers[document])
    end = int(pointers[document + 1]) if document + 1 < len(lengths) else len(tokens) * size
    wrong = length < 0 or pointer < 0 or pointer % size or pointer + length * size != end
    if wrong or end > len(tokens) * size:
        raise IndexError("gather: a document does not end where the next one begins")
    return pointer // size, pointer // size + length


class _Writer:
    """Copies runs of tokens, and of the mask with them, to a place in one row."""

    def __init__(self, source: Source, target: Target) -> None:
        self._tokens, self._mask = source
        self._rows, self._out, self._out_mask = target
        if self._tokens.ndim != 1 or self._tokens.dtype.kind not in "iu":
            raise ValueError("gather: tokens must be one row of an integer type")
        if self._mask is not None and self._mask.shape != self._tokens.shape:
            raise ValueError("gather: the mask must be uint8, one for each token")
        shape = self._out.shape if self._out_mask is None else self._out_mask.shape
        if self._out.ndim != 2 or self._out.dtype != np.int64 or shape != self._out.shape:
            raise ValueError("gather: the batch must be int64 tokens and a uint8 mask of the same shape")
        self.width = self._out.shape[1]
        self.extent = (0, -1)
        self._row = 0

    def choose_row(self, i: int) -> None:
        self._row = int(self._rows[i])
        if not 0 <= self._row < len(self._out):
            raise IndexError("gather: a row is outside the batch")

    def run(self, begin: int, count: int, place: int) -> None:
        if begin > len(self._tokens) - count:
            raise IndexError("gather: a run lies outside the tokens")
        tokens = self._tokens[begin : begin + count]
        self._out[self._row, place : place + count] = tokens
        if count:
            self.extent = (min(self.extent[0], int(tokens.min())), max(self.extent[1], int(tokens.max())))
        if self._out_mask is not None:
            codes = _LEARNED if self._mask is None else self._mask[begin : begin + count]
            self._out_mask[self._row, place : place + count] = codes

    def fill(self, place: int, pad: int) -> None:
        self._out[self._row, place:] = pad
        if self._out_mask is not None:
            self._out_mask[self._row, place:] = _NOT_LEARNED


def _reversed_bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The lowest 53 bits of each value in reverse order, uint64."""
    for width, mask in (
        (1, 0x5555555555555555),
        (2, 0x3333333333333333),
        (4, 0x0F0F0F0F0F0F0F0F),
        (8, 0x00FF00FF00FF00FF),
        (16, 0x0000FFFF0000FFFF),
        (32, 0x00000000FFFFFFFF),
    ):
        values = (values >> np.uint64(width)) & np.uint64(mask) | (values & np.uint64(mask)) << np.uint64(width)
    return values >> np.uint64(64 - SPREAD_BITS)
