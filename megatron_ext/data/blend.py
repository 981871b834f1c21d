"""Mixtures of datasets with constant weights, in megatron-core's greedy order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log, native
from megatron_ext.data.views import RowsToFill, TokenRange, View
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

_BLOCK = 1 << 16
_LOCAL_BITS = 48


def parse_blend(words: Sequence[str], flag: str) -> tuple[list[str], list[float] | None]:
    """Prefixes and weights of a blend; weights are None when only prefixes are given.

    Args:
        words: `PREFIX`, `PREFIX PREFIX ...` or `WEIGHT PREFIX WEIGHT PREFIX ...`.
        flag: where the words come from, for messages.

    Raises:
        DataError: weights and prefixes do not alternate, or a weight is not positive.

    Source: megatron-core 0.16.1, get_blend_from_list.
    """
    text = " ".join(words)
    numbers = [_number(word) for word in words]
    if len(words) % 2 or all(number is None for number in numbers[::2]):
        if any(number is not None for number in numbers):
            raise DataError(
                f"{flag} {text} mixes weights and prefixes in a way that cannot be read",
                "It is one prefix, several prefixes, or WEIGHT PREFIX WEIGHT PREFIX ...",
                "A prefix that is a number needs a folder before it: ./1",
            )
        return [word.strip() for word in words], None
    weights = []
    for word, number in zip(words[::2], numbers[::2], strict=True):
        if number is None or not 0 < number < float("inf"):
            raise DataError(f"{flag} {text}: {word!r} stands where a weight belongs", "A weight is a number above 0")
        weights.append(number)
    return [word.strip() for word in words[1::2]], weights


def normalize(weights: Sequence[float]) -> NDArray[np.float64]:
    """Weights divided by their sum, float64 `[k]`."""
    array = np.array(weights, dtype=np.float64)
    return array / np.sum(array)


class BlendIndex:
    """Which dataset, and which of its places, stands at each place of a mixture.

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


class BlendView(View):
    """Several views drawn from in proportion to constant weights.

    A sample id holds the dataset in its upper bits and that view's own id in its lower 48, so that a loader worker
    needs no index to read a sample.

    Args:
        views: at most 32767, of one sequence length.
        weights: float64 `[k]`, sum 1.
        num_samples: places before the mixture begins again (megatron-core's size); None for never.
    """

    def __init__(self, views: Sequence[View], weights: NDArray[np.float64], num_samples: int | None = None) -> None:
        self._views = list(views)
        self._index = BlendIndex(weights)
        self._num_samples = num_samples
        self.seq_length = views[0].seq_length
        self.num_tokens = sum(view.num_tokens for view in views)
        self.remainder_tokens = sum(view.remainder_tokens for view in views)
        self.has_loss_mask = any(view.has_loss_mask for view in views)
        self.source_names = tuple(view.source_names[0] for view in views)

    def __len__(self) -> int:
        """Samples of all datasets together, or the size given."""
        return sum(len(view) for view in self._views) if self._num_samples is None else self._num_samples

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Ids of the samples at places start .. start+count-1, int64 `[count]`."""
        if self._num_samples is None or start + count <= self._num_samples:
            return self._ids(start, count)
        log.warn_once(f"the blend was laid out for {self._num_samples} samples; more are asked for and it begins again")
        places = np.arange(start, start + count, dtype=np.int64) % self._num_samples
        return np.concatenate([self._ids(int(place), 1) for place in places])

    def __getitem__(self, sample_id: int) -> Int64Array:
        """The tokens of one sample, int64 `[seq_length + 1]`."""
        dataset, local = divmod(int(sample_id), 1 << _LOCAL_BITS)
        return self._views[dataset][local]

    def loss_mask(self, sample_id: int) -> NDArray[np.uint8] | None:
        """What is learned at each token of one sample, uint8 `[seq_length + 1]`; None for a dataset without a mask."""
        dataset, local = divmod(int(sample_id), 1 << _LOCAL_BITS)
        return self._views[dataset].loss_mask(local)

    def read_into(self, sample_ids: Int64Array, batch: RowsToFill) -> None:
        """Write samples to chosen rows of a batch, those of one dataset together."""
        datasets, local = sample_ids >> _LOCAL_BITS, sample_ids & ((1 << _LOCAL_BITS) - 1)
        for dataset in np.unique(datasets).tolist():
            here = datasets == dataset
            self._views[dataset].read_into(local[here], RowsToFill(batch.rows[here], batch.tokens, batch.mask))

    def sources_of(self, sample_ids: Int64Array) -> Int64Array:
        """Which of `source_names` each sample comes from, int64 `[b]`."""
        return sample_ids >> _LOCAL_BITS

    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data."""
        dataset, local = divmod(int(sample_id), 1 << _LOCAL_BITS)
        return self._views[dataset].token_ranges(local)

    def _ids(self, start: int, count: int) -> Int64Array:
        datasets, places = self._index.places(start, count)
        ids = np.empty(count, np.int64)
        for dataset in np.unique(datasets):
            here = np.flatnonzero(datasets == dataset)
            local = self._views[dataset].sample_ids(int(places[here[0]]), len(here))  # a dataset's places are a run
            ids[here] = (np.int64(dataset) << _LOCAL_BITS) | local
        return ids


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
