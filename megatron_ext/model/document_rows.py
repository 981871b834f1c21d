"""Which documents of a micro-batch become rows of one padded batch. Pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST_SHARE = 0.75
"""Documents down to this share of a group's longest one join the group: no more than a quarter of a row is padding."""


def similar_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut falling lengths into runs whose members are not much shorter than the first; (begin, end) of each."""
    runs, first = [], 0
    for index, length in enumerate(lengths):
        if length < SHORTEST_SHARE * lengths[first]:
            runs.append((first, index))
            first = index
    return [*runs, (first, len(lengths))]
