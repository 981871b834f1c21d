"""Curriculum orders: the place of a sample as a function of its rank in difficulty, 0 the easiest."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from megatron_ext.data.curriculum.seeded import groups, shuffled
from megatron_ext.errors import ConfigError
from megatron_ext.native_numpy import Int64Array


class CurriculumOrder(Protocol):
    """Gives every rank a place.

    Attributes:
        num_places: places there are; each is given to one rank.
    """

    num_places: int

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`; -1 for a rank without one."""
        ...


class SortedOrder:
    """Easy to hard."""

    def __init__(self, num_samples: int) -> None:
        self.num_places = num_samples

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`."""
        return ranks


class WarmupOrder:
    """The easiest share from easy to hard, then all others shuffled.

    Args:
        num_samples: samples there are.
        share: above 0 and below 1; of so many samples, rounded.
        seed: decides the shuffle.
    """

    def __init__(self, num_samples: int, share: float, seed: int) -> None:
        if not 0 < share < 1:
            raise ConfigError(f"--warmup-share {share} cannot be used", "It is above 0 and below 1")
        self.num_places = num_samples
        self._easiest = round(share * num_samples)
        self._seed = seed

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`."""
        places = ranks.copy()
        others = ranks >= self._easiest
        if others.any():
            rest = self.num_places - self._easiest
            places[others] = self._easiest + shuffled(ranks[others] - self._easiest, rest, self._seed, "warmup")
        return places


class Buckets:
    """Ranks cut into `count` buckets of equal size; the first n mod count of them hold one more.

    Raises:
        ConfigError: there are fewer samples than buckets, or less than one bucket.
    """

    def __init__(self, num_samples: int, count: int, flag: str) -> None:
        if not 1 <= count <= num_samples:
            raise ConfigError(f"{flag} {count} cannot be used", f"It is from 1 to the number of samples, {num_samples}")
        self.count = count
        self._size, self._larger = divmod(num_samples, count)

    def of(self, ranks: Int64Array) -> Int64Array:
        """The bucket of each rank, int64 `[k]`."""
        in_larger = (self._size + 1) * self._larger
        return np.where(ranks < in_larger, ranks // (self._size + 1), self._larger + (ranks - in_larger) // self._size)

    def start(self, buckets: Int64Array) -> Int64Array:
        """The lowest rank of each bucket, int64 `[k]`; for `count` the number of samples."""
        return buckets * self._size + np.minimum(buckets, self._larger)


class InterleavedOrder:
    """Buckets from the easiest to the hardest, dealt out one sample of each in turn, each from easy to hard."""

    def __init__(self, num_samples: int, count: int) -> None:
        self.num_places = num_samples
        self._buckets = Buckets(num_samples, count, "--buckets")

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`."""
        buckets = self._buckets.of(ranks)
        return (ranks - self._buckets.start(buckets)) * self._buckets.count + buckets


class JitteredOrder:
    """Another order after the samples were shuffled among those of like difficulty: inside each of `count` buckets."""

    def __init__(self, order: CurriculumOrder, num_samples: int, count: int, seed: int) -> None:
        self._order = order
        self.num_places = order.num_places
        self._buckets = Buckets(num_samples, count, "--jitter-buckets")
        self._seed = seed

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`; -1 for a rank without one."""
        moved = np.empty_like(ranks)
        for bucket, here in groups(self._buckets.of(ranks), self._buckets.count):
            first, last = self._buckets.start(np.array([bucket, bucket + 1])).tolist()
            moved[here] = first + shuffled(ranks[here] - first, last - first, self._seed, "jitter", bucket)
        return self._order.places(moved)
