"""Numbers dealt into buckets of known size on disk, in bounded memory: the middle of every external sort here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.sort_keys import temporary_file
from megatron_ext.data.preprocessing.output_file import writing_failed
from megatron_ext.native_numpy import Int64Array

_BYTES = 8


class BucketFile:
    """Buckets of uint64 one after the other in a temporary file without a name; a bucket keeps the order of arrival.

    Args:
        folder: where it lies.
        starts: int64 `[k + 1]`, numbers in all buckets before each one, and in all of them.
    """

    def __init__(self, folder: Path, starts: Int64Array) -> None:
        self._folder = folder
        self._stream = temporary_file(folder)
        self._next = starts[:-1].copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def add(self, buckets: NDArray, numbers: NDArray[np.uint64]) -> None:
        """Put each of `numbers` `[n]` into its bucket, unsigned integers `[n]`.

        Raises:
            DataError: the disk is full or fails.
        """
        dealt = numbers[np.argsort(buckets, kind="stable")].data.cast("B")
        counts = np.bincount(buckets, minlength=len(self._next))
        begin = 0
        try:
            for bucket in np.flatnonzero(counts):
                size = _BYTES * int(counts[bucket])
                self._write(dealt[begin : begin + size], _BYTES * int(self._next[bucket]))
                begin += size
        except OSError as error:
            raise writing_failed(self._folder, error) from None
        self._next += counts

    def read(self, first: int, last: int) -> NDArray[np.uint64]:
        """Numbers first .. last-1 of the file, uint64 `[last - first]`; buckets must be full by then."""
        numbers = np.empty(last - first, np.uint64)
        content, done = numbers.data.cast("B"), 0
        while done < len(content):
            done += os.preadv(self._stream.fileno(), [content[done:]], _BYTES * first + done)
        return numbers

    def _write(self, content: memoryview, offset: int) -> None:
        while content:
            written = os.pwrite(self._stream.fileno(), content, offset)
            content, offset = content[written:], offset + written
