"""What scores look like: percentiles, and the easiest, the median and the hardest documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (0, 1, 10, 25, 50, 75, 90, 99, 100)
"""The percentiles that are told."""
MOST_SAMPLES = 1 << 22
"""Percentiles of more documents are those of every k-th one: 16 MiB in memory, whatever the size."""

_BLOCK = 1 << 20


@dataclass(frozen=True)
class ScoreSummary:
    """The scores of one metric in numbers.

    Attributes:
        documents: how many there are.
        sample: float32 `[samples]`, ascending: all scores, or every k-th document's.
        smallest: the smallest score of all.
        largest: the largest score of all.
        mean: the mean of all.
        easiest: documents with the smallest scores, easiest first.
        median: documents near the median of the sample, in order of their scores.
        hardest: documents with the largest scores, hardest first.
    """

    documents: int
    sample: NDArray[np.float32]
    smallest: float
    largest: float
    mean: float
    easiest: list[int]
    median: list[int]
    hardest: list[int]

    def percentile(self, percent: float) -> float:
        """The score that so many percent of the documents do not exceed; 0 and 100 are exact for any number."""
        if percent <= 0 or percent >= 100:
            return self.smallest if percent <= 0 else self.largest
        return float(self.sample[max(0, int(np.ceil(percent / 100 * len(self.sample))) - 1)])


def summarize(values: NDArray[np.float32], examples: int = 3, most_samples: int = MOST_SAMPLES) -> ScoreSummary:
    """Look at all scores once, in blocks; of equal scores the first documents are named.

    Args:
        values: float32 `[documents]`, at least one; may be mapped.
        examples: how many documents are named of each kind.
        most_samples: most scores held for the percentiles.
    """
    stride = -(-len(values) // most_samples)
    sampled = np.array(values[::stride])
    order = np.argsort(sampled, kind="stable")
    middle = max(0, (len(order) - 1) // 2 - (examples - 1) // 2)
    low, high = _Extremes(examples, 1), _Extremes(examples, -1)
    total = 0.0
    for first in range(0, len(values), _BLOCK):
        block = np.array(values[first : first + _BLOCK])
        total += float(block.sum(dtype=np.float64))
        low.look(block, first)
        high.look(block, first)
    return ScoreSummary(
        documents=len(values),
        sample=sampled[order],
        smallest=float(low.scores[0]),
        largest=float(high.scores[0]),
        mean=total / len(values),
        easiest=low.documents.tolist(),
        median=(order[middle : middle + examples] * stride).tolist(),
        hardest=high.documents.tolist(),
    )


class _Extremes:
    """The documents with the smallest (sign 1) or largest (sign -1) scores so far, the most extreme first."""

    def __init__(self, count: int, sign: int) -> None:
        self._count, self._sign = count, sign
        self.scores, self.documents = np.empty(0, np.float32), np.empty(0, np.int64)

    def look(self, block: NDArray[np.float32], first: int) -> None:
        scores = np.concatenate([self.scores, block])
        documents = np.concatenate([self.documents, np.arange(first, first + len(block))])
        best = np.argsort(self._sign * scores, kind="stable")[: self._count]
        self.scores, self.documents = scores[best], documents[best]


def percentile_rows(summaries: dict[str, ScoreSummary]) -> list[str]:
    """A table as lines: a row per metric with its mean and percentiles."""
    columns = ["metric", "mean", *("min" if p == 0 else "max" if p == 100 else f"p{p}" for p in PERCENTILES)]
    rows = [columns] + [
        [name, *(f"{value:,.4g}" for value in (one.mean, *map(one.percentile, PERCENTILES)))]
        for name, one in summaries.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    if any(len(one.sample) < one.documents for one in summaries.values()):
        most = max(len(one.sample) for one in summaries.values())
        lines.append(f"p1 to p99 are those of {most:,} documents, evenly chosen")
    return lines
