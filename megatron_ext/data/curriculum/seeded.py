"""Shuffles that are formulas: equal words give the same one, and no array of its length exists."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from megatron_ext import native
from megatron_ext.native_numpy import Int64Array


def shuffled(indices: Int64Array, size: int, *words: object) -> Int64Array:
    """Where `indices` int64 `[k]` come to stand in a pseudo-random permutation of [0, size) that `words` choose."""
    digest = hashlib.sha256(" ".join(map(str, words)).encode("utf-8")).digest()
    return native.permute(int.from_bytes(digest[:8], "little"), size, indices)


def groups(labels: Int64Array, num_labels: int) -> Iterator[tuple[int, Int64Array]]:
    """(label, places int64 `[k]` in `labels` that have it), for each label of 0 .. num_labels-1 that occurs."""
    order = np.argsort(labels.astype(np.uint16) if num_labels <= 1 << 16 else labels, kind="stable")
    sorted_labels = labels[order]
    begins = np.flatnonzero(np.diff(sorted_labels, prepend=-1))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(labels)], strict=True):
        yield int(sorted_labels[begin]), order[begin:end]
