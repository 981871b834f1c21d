"""Samples sorted by difficulty outside of memory: dealt into ranges of keys on disk, then sorted range by range.

Every sample is written and read once (8 bytes) beside its key (4 bytes). Memory holds a few arrays of the length of a
range, which is 2^20 samples or 1/256 of them, whatever is more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.bucket_files import BucketFile
from megatron_ext.data.curriculum.sort_keys import KeyFile
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

MAX_SAMPLES = (1 << 32) - 1
"""A sample and its key, or its place, share 64 bits."""
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_SMALLEST_RANGE = 1 << 20


def sorted_samples(keys: KeyFile, folder: Path, largest_range: int | None = None) -> Iterator[Int64Array]:
    """All samples from the smallest key to the largest, equal keys by number: int64 `[n]`, piece after piece.

    The same as `numpy.argsort(keys, kind="stable")`.

    Args:
        keys: a key for each sample 0, 1, 2, ...
        folder: where the temporary file lies, 8 bytes per sample.
        largest_range: samples sorted at a time.

    Raises:
        DataError: there are 2^32 samples or more, or the disk is full or fails.
    """
    refuse_too_many(len(keys))
    largest = largest_range or max(_SMALLEST_RANGE, len(keys) // 256)
    ranges = keys.ranges(largest)
    with BucketFile(folder, ranges.starts) as buckets:
        for first, block in keys.blocks():
            pairs = block.astype(np.uint64)
            pairs <<= _HALF
            pairs |= np.arange(first, first + len(block), dtype=np.uint64)
            buckets.add(ranges.of(block), pairs)
        for begin, end in zip(ranges.starts[:-1].tolist(), ranges.starts[1:].tolist(), strict=True):
            if end - begin <= largest:
                yield _sorted(buckets.read(begin, end))
                continue
            for first in range(begin, end, largest):  # samples with one and the same key, which arrived in order
                yield _low_halves(buckets.read(first, min(first + largest, end)))


def sorted_apart(keys: KeyFile, starts: Sequence[int], folder: Path) -> Iterator[Int64Array]:
    """The samples of each dataset as `sorted_samples` sorts them, one dataset after the other: int64 `[n]`.

    Args:
        keys: a key for each sample.
        starts: the first sample of each dataset, and last the number of all samples.
        folder: where the temporary files of one dataset lie, 12 bytes per sample.
    """
    for begin, end in pairwise(starts):
        with KeyFile(folder) as own:
            for _, block in keys.blocks(begin, end):
                own.append(block)
            for samples in sorted_samples(own, folder):
                yield begin + samples


def refuse_too_many(samples: int) -> None:
    """Raise DataError when there are more samples than an order can be made of here."""
    if samples > MAX_SAMPLES:
        raise DataError(f"{samples} samples cannot be ordered", f"An order has at most {MAX_SAMPLES}")


def placed(pairs: NDArray[np.uint64], first: int) -> Int64Array:
    """Samples in the order of their places, int64 `[n]`.

    Args:
        pairs: uint64 `[n]`, place << 32 | sample, with places first .. first+n-1 in any order.
        first: the lowest place.
    """
    samples = np.empty(len(pairs), np.int64)
    samples[(pairs >> _HALF).astype(np.int64) - first] = _low_halves(pairs)
    return samples


def _sorted(pairs: NDArray[np.uint64]) -> Int64Array:
    """Low halves of uint64 `[n]` in the order of the high ones, equal ones as they stand: by radix, 16 bits a time."""
    keys = (pairs >> _HALF).astype(np.uint32)
    keys -= keys.min()
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    high = keys >> np.uint32(16)
    if largest := int(high.max()):
        order = order[np.argsort(high.astype(np.uint8 if largest < 256 else np.uint16)[order], kind="stable")]
    return _low_halves(pairs[order])


def _low_halves(pairs: NDArray[np.uint64]) -> Int64Array:
    return (pairs & _LOW).astype(np.int64)
