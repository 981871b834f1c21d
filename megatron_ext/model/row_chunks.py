"""Rows of a large matrix a few at a time, so that what is made of them in fp32 never exists whole."""

from __future__ import annotations

from collections.abc import Iterator

CHUNK_ELEMENTS = 1 << 20
"""Elements turned to fp32 at a time (4 MiB): they stay in the cache."""


def row_chunks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Slices of rows that hold about `elements` (`CHUNK_ELEMENTS`) each, at least a row; none without columns."""
    step = max(1, (elements or CHUNK_ELEMENTS) // columns) if columns else rows + 1
    return (slice(start, start + step) for start in range(0, rows if columns else 0, step))
