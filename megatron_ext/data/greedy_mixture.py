"""megatron-core's greedy mixture: at each place the dataset farthest behind its weight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_ext import native
from megatron_ext.native_numpy import Int64Array

_BLOCK = 1 << 16


class GreedyMixture:
    """The order of `--dataset-order megatron`, index for index; it has no formula for a place, only a walk.

    Memory: one count per dataset and 65536 places; going to a far place for the first time takes time in proportion.

    Args:
        weights: float64 `[k]`, sum 1.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self._weights = weights
        self._drawn_before = [np.zeros(len(weights), np.int64)]  # counts at the beginning of each block
        self._last: tuple[int, NDArray[np.int16], Int64Array] | None = None

    def places(self, start: int, count: int) -> tuple[NDArray[np.int16], Int64Array]:
        """Dataset int16 `[count]` and place in that dataset int64 `[count]` for places start .. start+count-1."""
        datasets, places = [np.empty(0, np.int16)], [np.empty(0, np.int64)]
        for block in range(start // _BLOCK, -(-(start + count) // _BLOCK)):
            dataset, place = self._block(block)
            part = slice(max(start - block * _BLOCK, 0), min(start + count - block * _BLOCK, _BLOCK))
            datasets.append(dataset[part])
            places.append(place[part])
        return np.concatenate(datasets), np.concatenate(places)

    def _block(self, block: int) -> tuple[NDArray[np.int16], Int64Array]:
        if self._last is not None and self._last[0] == block:
            return self._last[1], self._last[2]
        for index in range(min(block, len(self._drawn_before) - 1), block + 1):
            dataset, place, after = native.blend(self._weights, self._drawn_before[index], index * _BLOCK, _BLOCK)
            if index + 1 == len(self._drawn_before):
                self._drawn_before.append(after)
        self._last = (block, dataset, place)
        return dataset, place
