"""Mixtures whose places are a formula: any place of any blend in logarithmic time, with nothing kept but weights.

Place n belongs to the dataset in whose interval of [0, 1) the n-th point of van der Corput's sequence lies; intervals
are as wide as weights. What `native.spread` counts says which sample of the dataset it is. After n places no dataset is
further from its weight than log2(n) + 1 samples.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_ext import native
from megatron_ext.native_numpy import Int64Array
from megatron_ext.sampling_numpy import SPREAD_BITS


@dataclass(frozen=True)
class _Piece:
    """Constant weights from a place on; `offset` added to a rank of `native.spread` is the place in the dataset."""

    first: int
    weights: NDArray[np.float64]
    thresholds: Int64Array
    offset: Int64Array


class WeightedMixture:
    """Datasets in proportion to weights that may change from some places on.

    Memory: three numbers per dataset for each change of the weights.

    Args:
        weights: `[k]` numbers of at least 0, not all 0, in any unit.
    """

    def __init__(self, weights: ArrayLike) -> None:
        self._pieces: list[_Piece] = []
        self.reweight(0, weights)

    def reweight(self, first_place: int, weights: ArrayLike) -> None:
        """Let `weights`, as of the constructor, hold from a place on; nothing before it changes.

        Args:
            first_place: not before that of the last change; the same place replaces that change.
            weights: `[k]`.
        """
        if self._pieces and first_place < self._pieces[-1].first:
            raise ValueError(f"weights changed at place {self._pieces[-1].first} already, after {first_place}")
        thresholds = weight_thresholds(weights)
        drawn = self.drawn(first_place) if self._pieces else np.zeros(len(thresholds) - 1, np.int64)
        if self._pieces and self._pieces[-1].first == first_place:
            self._pieces.pop()
        offset = drawn - np.diff(native.spread_counts(first_place, thresholds))
        self._pieces.append(_Piece(first_place, np.asarray(weights, np.float64), thresholds, offset))

    def weights_at(self, place: int) -> NDArray[np.float64]:
        """The weights that hold at a place, float64 `[k]`, sum 1."""
        weights = self._piece_at(place).weights
        return weights / weights.sum()

    def drawn(self, place: int) -> Int64Array:
        """How many samples of each dataset stand before a place, int64 `[k]`."""
        piece = self._piece_at(place)
        return piece.offset + np.diff(native.spread_counts(place, piece.thresholds))

    def places(self, start: int, count: int) -> tuple[NDArray[np.int16], Int64Array]:
        """Dataset int16 `[count]` and place in that dataset int64 `[count]` for places start .. start+count-1."""
        datasets, places = [np.empty(0, np.int16)], [np.empty(0, np.int64)]
        while count > 0:
            index = self._index_at(start)
            piece, last = self._pieces[index], index + 1 == len(self._pieces)
            here = count if last else min(count, self._pieces[index + 1].first - start)
            dataset, rank = native.spread(piece.thresholds, start, here)
            datasets.append(dataset)
            places.append(rank + piece.offset[dataset])
            start, count = start + here, count - here
        return np.concatenate(datasets), np.concatenate(places)

    def _index_at(self, place: int) -> int:
        return bisect_right(self._pieces, place, key=lambda piece: piece.first) - 1

    def _piece_at(self, place: int) -> _Piece:
        return self._pieces[self._index_at(place)]


class EpochMixture:
    """Every sample of every dataset once in an epoch, each dataset spread evenly over all of it.

    Args:
        sizes: `[k]` samples of each dataset.
    """

    def __init__(self, sizes: ArrayLike) -> None:
        self._sizes = np.asarray(sizes, np.int64)
        self._epoch = int(self._sizes.sum())
        self._thresholds = _exact_thresholds(self._sizes)

    def places(self, start: int, count: int) -> tuple[NDArray[np.int16], Int64Array]:
        """Dataset int16 `[count]` and place in that dataset int64 `[count]` for places start .. start+count-1."""
        datasets, places = [np.empty(0, np.int16)], [np.empty(0, np.int64)]
        while count > 0:
            epoch, first = divmod(start, self._epoch)
            here = min(count, self._epoch - first)
            dataset, rank = native.spread(self._thresholds, first, here)
            datasets.append(dataset)
            places.append(rank + epoch * self._sizes[dataset])
            start, count = start + here, count - here
        return np.concatenate(datasets), np.concatenate(places)


def weight_thresholds(weights: ArrayLike) -> Int64Array:
    """Thresholds of `native.spread` for `[k]` weights, int64 `[k + 1]`.

    Raises:
        ValueError: a weight is negative or not a number, or all are 0.
    """
    array = np.asarray(weights, np.float64)
    if not array.size or not np.isfinite(array).all() or array.min() < 0 or not array.max() > 0:
        raise ValueError("weights are finite numbers of at least 0, not all 0")
    ends = np.cumsum(array / array.max())  # one after the other, so that every machine rounds alike
    scaled = np.floor(ends / ends[-1] * (1 << SPREAD_BITS)).astype(np.int64)
    scaled[np.flatnonzero(array)[-1] :] = 1 << SPREAD_BITS
    return np.concatenate([np.zeros(1, np.int64), scaled])


def _exact_thresholds(sizes: Int64Array) -> Int64Array:
    """Thresholds with which the first sum(sizes) places hold each dataset exactly sizes[i] times, int64 `[k + 1]`.

    The number of those places whose point lies below a threshold grows with it in steps of one, so that a search by
    halves finds where it has the wanted value.
    """
    ends = np.cumsum(sizes)
    low, high = np.zeros(len(ends), np.int64), np.full(len(ends), 1 << SPREAD_BITS, np.int64)
    while np.any(low < high):
        middle = (low + high) // 2
        enough = native.spread_counts(int(ends[-1]), middle) >= ends
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    high[sizes.nonzero()[0][-1] :] = 1 << SPREAD_BITS
    return np.concatenate([np.zeros(1, np.int64), high])
