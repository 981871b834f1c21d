"""Blends of datasets: what --data-path says of them, and the view that draws from several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log
from megatron_ext.data.spread_mixture import WeightedMixture
from megatron_ext.data.views import RowsToFill, TokenRange, View
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

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
    if sum(weights) == float("inf"):
        raise DataError(f"{flag} {text}: the weights are too large to add", "Only their ratios count")
    return [word.strip() for word in words[1::2]], weights


def normalize(weights: Sequence[float]) -> NDArray[np.float64]:
    """Weights divided by their sum, float64 `[k]`."""
    array = np.array(weights, dtype=np.float64)
    return array / np.sum(array)


class Mixture(Protocol):
    """Which dataset, and which of its places, stands at each place of a stream."""

    def places(self, start: int, count: int) -> tuple[NDArray[np.int16], Int64Array]:
        """Dataset int16 `[count]` and place in that dataset int64 `[count]` for places start .. start+count-1.

        The places of one dataset follow one another without a gap.
        """
        ...


class BlendView(View):
    """Several views drawn from as a mixture says.

    A sample id holds the dataset in its upper bits and that view's own id in its lower 48, so that a loader worker
    needs no index to read a sample.

    Args:
        views: at most 32767, of one sequence length.
        mixture: which view stands where.
        num_samples: places before the mixture begins again (megatron-core's size); None for never.
    """

    def __init__(self, views: Sequence[View], mixture: Mixture, num_samples: int | None = None) -> None:
        self._views = list(views)
        self._mixture = mixture
        self._num_samples = num_samples
        self.seq_length = views[0].seq_length
        self.num_tokens = sum(view.num_tokens for view in views)
        self.remainder_tokens = sum(view.remainder_tokens for view in views)
        self.has_loss_mask = any(view.has_loss_mask for view in views)
        self.source_names = tuple(view.source_names[0] for view in views)
        self.stores = tuple(store for view in views for store in view.stores)

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

    @property
    def is_weighted(self) -> bool:
        """Whether the mixture goes by weights that can change."""
        return isinstance(self._mixture, WeightedMixture)

    def weights_at(self, place: int) -> NDArray[np.float64]:
        """The weights of the datasets at a place of the stream, float64 `[k]`, sum 1; only of a weighted mixture."""
        return self._weighted.weights_at(place)

    def reweight(self, first_place: int, weights: Sequence[float]) -> None:
        """Let other weights hold from a place of the stream on (`WeightedMixture.reweight`)."""
        self._weighted.reweight(first_place, weights)

    @property
    def _weighted(self) -> WeightedMixture:
        if not isinstance(self._mixture, WeightedMixture):
            raise TypeError(f"a {type(self._mixture).__name__} has no weights that could change")
        return self._mixture

    def sources_of(self, sample_ids: Int64Array) -> Int64Array:
        """Which of `source_names` each sample comes from, int64 `[b]`."""
        return sample_ids >> _LOCAL_BITS

    def token_ranges(self, sample_id: int) -> list[TokenRange]:
        """Where the tokens of one sample stand in the data."""
        dataset, local = divmod(int(sample_id), 1 << _LOCAL_BITS)
        return self._views[dataset].token_ranges(local)

    def _ids(self, start: int, count: int) -> Int64Array:
        datasets, places = self._mixture.places(start, count)
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
