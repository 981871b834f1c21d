"""Cutting a dataset into training, validation and test parts, by sequence numbers, before any order is applied."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from megatron_ext.errors import DataError

SPLIT_NAMES = ("train", "valid", "test")


@dataclass(frozen=True)
class Span:
    """Sequences first .. last-1 of a dataset."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of sequences."""
        return self.last - self.first


def split_bounds(split: str) -> list[tuple[float, float] | None]:
    """Begin and end of each part as fractions of the dataset; None for a part of share 0.

    Args:
        split: shares of training, validation and test, for example "969, 30, 1"; missing ones are 0.

    Raises:
        DataError: not one to three numbers, or their sum is 0.

    Source: megatron-core 0.16.1, parse_and_normalize_split and convert_split_vector_to_split_matrix; the sums are
    taken in the same order, so that the fractions are the same to the last bit.
    """
    words = [word for word in re.split(r"[,/\s]+", split.strip()) if word]
    try:
        shares = [float(word) for word in words]
    except ValueError:
        shares = []
    if not 1 <= len(shares) <= 3 or not all(math.isfinite(share) and share >= 0 for share in shares) or not sum(shares):
        raise DataError(
            f'--split "{split}" cannot be read',
            "It has one to three numbers of at least 0, not all 0: the shares of training, validation and test",
            'Give for example --split "969, 30, 1"',
        )
    shares = [*shares, 0.0, 0.0][:3]
    total = float(np.sum(np.array(shares, np.float64)))
    bounds: list[tuple[float, float] | None] = []
    begin = 0.0
    for share in shares:
        end = begin + share / total
        bounds.append((begin, end) if end > begin else None)
        begin = end
    return bounds


def span_of(bounds: tuple[float, float], num_sequences: int) -> Span:
    """The sequences of one part.

    Source: megatron-core 0.16.1, BlendedMegatronDatasetBuilder: int(round(fraction * number)).
    """
    begin, end = (round(fraction * float(num_sequences)) for fraction in bounds)
    return Span(begin, end)
