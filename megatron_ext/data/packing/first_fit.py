"""First fit: each item goes to the first bin that has room, in O(log bins) per item."""

from __future__ import annotations

import numpy as np

from megatron_ext.native_numpy import Int64Array


def first_fit(lengths: Int64Array, capacity: int, openers: int | None = None) -> Int64Array:
    """The bin of each item, int64 `[n]`; bins are numbered as they are opened.

    TeleChat fills one bin at a time instead: a pointer scans what is left of the pool and takes every item that
    fits. An item that it passes over had no room in that bin, and the room only shrinks; so both put an item into the
    first bin that had room for it when its turn came, and the bins are the same, items in the same order. Its early
    end of a scan (no room for the shortest item) skips only what would not fit.

    Here a binary tree of the largest room below each node finds that bin. All bins but one are more than half full
    (the first item of the later of two others would have fitted into the earlier), which bounds their number.

    Args:
        lengths: int64 `[n]`, in [1, capacity].
        capacity: what a bin holds.
        openers: how many items, from the first on, may open a bin; a later one that fits no open bin gets -1. None:
            all of them.

    Raises:
        ValueError: a length is outside [1, capacity].
    """
    if len(lengths) == 0:
        return np.empty(0, np.int64)
    if lengths.min() < 1 or lengths.max() > capacity:
        raise ValueError(f"lengths from {lengths.min()} to {lengths.max()} for bins of {capacity}")
    openers = len(lengths) if openers is None else openers
    most_bins = max(1, min(openers, 2 * int(lengths[:openers].sum()) // capacity + 2))
    leaves = 1 << (most_bins - 1).bit_length()
    room = [capacity] * (2 * leaves)  # node 1 is the root, the children of node k are 2k and 2k + 1
    bins = np.empty(len(lengths), np.int64)
    bins[:openers] = _place(room, lengths[:openers])
    if openers < len(lengths):
        opened = int(bins[:openers].max()) + 1 if openers else 0
        _close(room, opened)
        bins[openers:] = _place(room, lengths[openers:])
    return bins


def _place(room: list[int], lengths: Int64Array) -> list[int]:
    """The bin of each item, -1 for one that fits nowhere; `room` is brought up to date."""
    leaves, bins = len(room) // 2, []
    for length in lengths.tolist():
        if room[1] < length:
            bins.append(-1)
            continue
        node = 1
        while node < leaves:
            node += node
            if room[node] < length:
                node += 1
        bins.append(node - leaves)
        left = room[node] = room[node] - length
        while node > 1:
            beside = room[node ^ 1]
            if beside > left:
                left = beside
            node >>= 1
            if room[node] == left:
                break
            room[node] = left
    return bins


def _close(room: list[int], opened: int) -> None:
    """Leave no room in the bins from number `opened` on."""
    leaves = len(room) // 2
    room[leaves + opened :] = [0] * (leaves - opened)
    for node in range(leaves - 1, 0, -1):
        room[node] = max(room[2 * node], room[2 * node + 1])
