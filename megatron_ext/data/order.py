"""Orders of samples: which sample stands at which place, as functions of the place alone (law L3)."""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np

from megatron_ext import native
from megatron_ext.native_numpy import Int64Array


class Order(Protocol):
    """Maps places 0, 1, 2, ... without end to sample ids."""

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Sample ids at places start .. start+count-1, int64 `[count]`; a pure function of the order."""
        ...


class SequentialOrder:
    """Samples as they stand in the data, epoch after epoch."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Sample ids at places start .. start+count-1, int64 `[count]`."""
        return np.arange(start, start + count, dtype=np.int64) % self._num_samples


class PermutedOrder:
    """Every epoch a pseudo-random permutation of all samples, computed per place: no array, no build step.

    Args:
        num_samples: samples in one epoch.
        key: equal keys give equal orders; see `order_key`.
    """

    def __init__(self, num_samples: int, key: str) -> None:
        self._num_samples = num_samples
        self._key = key

    def sample_ids(self, start: int, count: int) -> Int64Array:
        """Sample ids at places start .. start+count-1, int64 `[count]`; each epoch holds every sample once."""
        parts = []
        place, end = start, start + count
        while place < end:
            epoch, first = divmod(place, self._num_samples)
            last = min(self._num_samples, first + end - place)
            places = np.arange(first, last, dtype=np.int64)
            parts.append(native.permute(_hash64(f"{self._key} {epoch}"), self._num_samples, places))
            place += last - first
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def order_key(seed: int, split_name: str, place_in_blend: int, identity: str) -> str:
    """The key of a dataset's permutation: differs between seeds, splits, datasets and places in a blend."""
    return f"{seed} {split_name} {place_in_blend} {identity}"


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "little")
