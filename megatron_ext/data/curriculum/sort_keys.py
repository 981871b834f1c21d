"""Difficulties as whole numbers that sort alike, and the ranges of them into which a sort is divided."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.preprocessing.output_file import writing_failed
from megatron_ext.native_numpy import Int64Array

_SIGN = np.uint32(1 << 31)
_CELL_BITS = 16
_BLOCK = 1 << 20


def sortable_keys(difficulties: NDArray[np.float32], reverse: bool = False) -> NDArray[np.uint32]:
    """Keys uint32 `[n]` in the order of `difficulties` float32 `[n]`, finite; in the opposite order with `reverse`.

    Equal difficulties have equal keys, either way.
    """
    bits = (difficulties + np.float32(0)).view(np.uint32)  # the sum makes -0 a 0
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return ~keys if reverse else keys


def difficulties_of(keys: NDArray[np.uint32], reverse: bool = False) -> NDArray[np.float32]:
    """The difficulties float32 `[n]` of `sortable_keys`."""
    keys = ~keys if reverse else keys
    return np.where(keys & _SIGN, keys ^ _SIGN, ~keys).view(np.float32)


class KeyFile:
    """The keys of all samples in a temporary file of 4 bytes each, nameless from the beginning.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream: IO[bytes] = temporary_file(folder)
        self._smallest, self._largest = 0xFFFFFFFF, 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, keys: NDArray[np.uint32]) -> None:
        """Add the keys uint32 `[n]` of the next samples."""
        if not len(keys):
            return
        try:
            self._stream.write(np.ascontiguousarray(keys).data.cast("B"))
            self._stream.flush()
        except OSError as error:
            raise writing_failed(self._folder, error) from None
        self._smallest = min(self._smallest, int(keys.min()))
        self._largest = max(self._largest, int(keys.max()))
        self._count += len(keys)

    def blocks(self, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """(number of the first sample, keys uint32 `[n]`) of samples begin .. end-1, else of all, in order."""
        end = self._count if end is None else end
        self._stream.seek(4 * begin)
        for first in range(begin, end, _BLOCK):
            content = self._stream.read(4 * min(_BLOCK, end - first))
            yield first, np.frombuffer(content, np.uint32)

    def of(self, samples: Int64Array) -> NDArray[np.uint32]:
        """The keys of some samples, uint32 `[k]`: one reading of the file."""
        order = np.argsort(samples, kind="stable")
        wanted, found = samples[order], np.empty(len(samples), np.uint32)
        for first, keys in self.blocks():
            begin, end = np.searchsorted(wanted, [first, first + len(keys)])
            found[order[begin:end]] = keys[wanted[begin:end] - first]
        return found

    def ranges(self, largest: int) -> KeyRanges:
        """Cut the keys into ranges of at most `largest` samples; a single key may have more.

        The keys between the smallest and the largest are counted in 2^16 cells; cells with too many samples are
        counted again, key by key.
        """
        shift = max(0, (self._largest - self._smallest).bit_length() - _CELL_BITS)
        counts = np.zeros(1 << _CELL_BITS, np.int64)
        for _, keys in self.blocks():
            counts += np.bincount((keys - np.uint32(self._smallest)) >> np.uint32(shift), minlength=len(counts))
        too_large = np.flatnonzero(counts > largest) if shift else np.empty(0, np.int64)
        inside = self._counts_inside(too_large, shift)
        begins, sizes, last = [], [], 0
        for row, cell in enumerate(too_large.tolist()):
            begins += [np.arange(last, cell, dtype=np.int64) << shift, (cell << shift) + np.arange(1 << shift)]
            sizes += [counts[last:cell], inside[row]]
            last = cell + 1
        begins.append(np.arange(last, len(counts), dtype=np.int64) << shift)
        sizes.append(counts[last:])
        return _merged(np.concatenate(begins) + self._smallest, np.concatenate(sizes), largest)

    def _counts_inside(self, cells: Int64Array, shift: int) -> Int64Array:
        """Samples at each key of some cells, int64 `[cells, 2^shift]`."""
        counts = np.zeros(len(cells) << shift, np.int64)
        if not len(cells):
            return counts.reshape(0, 1 << shift)
        row = np.full(1 << _CELL_BITS, -1, np.int32)
        row[cells] = np.arange(len(cells))
        for _, keys in self.blocks():
            offsets = keys - np.uint32(self._smallest)
            rows = row[offsets >> np.uint32(shift)]
            chosen = rows >= 0
            low = offsets[chosen] & np.uint32((1 << shift) - 1)
            counts += np.bincount((rows[chosen].astype(np.int64) << shift) | low, minlength=len(counts))
        return counts.reshape(len(cells), 1 << shift)


@dataclass(frozen=True)
class KeyRanges:
    """Consecutive ranges of keys.

    Attributes:
        first_keys: int64 `[k]`, the smallest key of each.
        starts: int64 `[k + 1]`, samples with a key below each range; last the number of samples.
    """

    first_keys: Int64Array
    starts: Int64Array

    def of(self, keys: NDArray[np.uint32]) -> NDArray:
        """The range of each key, uint16 `[n]`; uint8 where that holds them all, because it sorts faster."""
        smallest, shift, begins, is_cut = self._table
        cells = np.minimum((keys - np.uint32(smallest)) >> np.uint32(shift), np.uint32(len(begins) - 1))
        ranges = begins[cells]
        searched = np.flatnonzero(is_cut[cells])
        ranges[searched] = np.searchsorted(self.first_keys, keys[searched].astype(np.int64), side="right") - 1
        return ranges

    @cached_property
    def _table(self) -> tuple[int, int, NDArray, NDArray[np.bool_]]:
        """The range of almost every key by its upper bits; those in a cell that a range cuts in two are searched."""
        smallest, last = int(self.first_keys[0]), int(self.first_keys[-1])
        shift = max(0, (last - smallest).bit_length() - _CELL_BITS)
        cells = smallest + (np.arange(1 << _CELL_BITS, dtype=np.int64) << shift)
        begins = np.searchsorted(self.first_keys, cells, side="right") - 1
        ends = np.searchsorted(self.first_keys, cells + (1 << shift) - 1, side="right") - 1
        kind = np.uint8 if len(self.first_keys) <= 256 else np.uint16
        return smallest, shift, begins.astype(kind), begins != ends


def temporary_file(folder: Path) -> IO[bytes]:
    """A file without a name that goes away with its last use.

    Raises:
        DataError: the folder is missing or not writable.
    """
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise writing_failed(folder, error) from None


def _merged(begins: Int64Array, sizes: Int64Array, largest: int) -> KeyRanges:
    """Join neighbouring cells, int64 `[c]` each, as long as `largest` samples are not passed."""
    filled = np.flatnonzero(sizes)
    first_keys, starts, total, size = [int(begins[filled[0]])], [0], 0, 0
    for begin, count in zip(begins[filled].tolist(), sizes[filled].tolist(), strict=True):
        if size and size + count > largest:
            first_keys.append(begin)
            starts.append(total)
            size = 0
        size += count
        total += count
    return KeyRanges(np.array(first_keys, np.int64), np.array([*starts, total], np.int64))
