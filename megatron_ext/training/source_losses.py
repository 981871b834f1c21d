"""What a run has seen of each dataset of a blend: samples, learned tokens and their loss, all of them whole numbers.

Whole numbers add up to the same in any order. So the totals of a global batch are those of its samples, however these
were dealt to ranks and micro-batches, and a resume goes on with exactly what was interrupted (law L2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_ext.native_numpy import Int64Array

SOURCES_FILE = "sources.jsonl"
WEIGHTS_FILE = "blend_weights.jsonl"
LOSS_UNIT = 2.0**-16
"""The loss that the tokens of a sample sum up to is kept as a number of these."""


@dataclass(frozen=True, eq=False)
class SourceTotals:
    """Sums per source over some samples.

    Samples whose loss is not finite are counted, but neither their loss nor their tokens.

    Attributes:
        sums: int64 `[3, k]`: samples; tokens that count in the loss; their summed loss in units of `LOSS_UNIT`.
    """

    sums: Int64Array

    @classmethod
    def zeros(cls, num_sources: int) -> SourceTotals:
        """The totals of nothing."""
        return cls(np.zeros((3, num_sources), np.int64))

    @classmethod
    def from_lists(cls, values: Any) -> SourceTotals:
        """What `to_lists` gave.

        Raises:
            ValueError: it gave something else.
        """
        rows = values if isinstance(values, list) and len(values) == 3 else [0]
        if not all(isinstance(row, list) and all(type(count) is int and count >= 0 for count in row) for row in rows):
            raise ValueError("totals of sources are three lists of counts")
        if len({len(row) for row in rows}) != 1:
            raise ValueError("totals of sources are lists of one length")
        return cls(np.array(rows, np.int64))

    def to_lists(self) -> list[list[int]]:
        """The sums as plain numbers, for a checkpoint."""
        return self.sums.tolist()

    def __len__(self) -> int:
        """Number of sources, k."""
        return self.sums.shape[1]

    def __add__(self, other: SourceTotals) -> SourceTotals:
        return SourceTotals(self.sums + other.sums)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SourceTotals) and np.array_equal(self.sums, other.sums)

    @property
    def losses(self) -> list[float | None]:
        """Mean loss per learned token of each source; None where there was none."""
        return [loss * LOSS_UNIT / tokens if tokens else None for _, tokens, loss in self.sums.T.tolist()]

    @property
    def shares(self) -> list[float]:
        """Share of each source in all samples; 0 without samples."""
        samples = self.sums[0]
        return (samples / max(1, samples.sum())).tolist()


@dataclass(frozen=True)
class Decision:
    """New weights of a blend.

    Attributes:
        iteration: they were decided after it.
        consumed_samples: they hold from this place of the sample stream on, the beginning of a global batch.
        weights: one per source, in any unit.
        losses: the mean loss of each source that they follow from; None for a source that was not seen.
    """

    iteration: int
    consumed_samples: int
    weights: tuple[float, ...]
    losses: tuple[float | None, ...]

    def to_record(self) -> dict[str, Any]:
        """As a line of blend_weights.jsonl, and in a checkpoint."""
        return {
            "iteration": self.iteration,
            "consumed_samples": self.consumed_samples,
            "weights": list(self.weights),
            "losses": list(self.losses),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Decision:
        """What `to_record` gave.

        Raises:
            ValueError: it gave something else.
        """
        try:
            places = record["iteration"], record["consumed_samples"]
            weights = tuple(float(weight) for weight in record["weights"])
            losses = tuple(None if loss is None else float(loss) for loss in record["losses"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"a decision about weights lacks a value: {error}") from None
        if any(type(place) is not int or place < 1 for place in places):
            raise ValueError("a decision about weights has no place")
        return cls(*places, weights, losses)


@dataclass
class SourceProgress:
    """What a run keeps of its sources from step to step and over a resume; the same on every rank.

    Attributes:
        since_report: totals since the last line of sources.jsonl.
        since_decision: totals since the last decision about weights, or the beginning.
        decisions: all decisions of the run, in their order.
    """

    since_report: SourceTotals
    since_decision: SourceTotals
    decisions: list[Decision] = field(default_factory=list)

    @classmethod
    def begin(cls, num_sources: int) -> SourceProgress:
        """At the beginning of a run."""
        return cls(SourceTotals.zeros(num_sources), SourceTotals.zeros(num_sources))

    def add(self, totals: SourceTotals) -> None:
        """Count one step."""
        self.since_report += totals
        self.since_decision += totals

    def take_report(self) -> SourceTotals:
        """The totals since the last report; the next ones begin at zero."""
        taken, self.since_report = self.since_report, SourceTotals.zeros(len(self.since_report))
        return taken

    def decide(self, decision: Decision) -> None:
        """Keep a decision; the totals that the next one goes by begin at zero."""
        self.decisions.append(decision)
        self.since_decision = SourceTotals.zeros(len(self.since_decision))

    def to_record(self) -> dict[str, Any]:
        """Everything as plain numbers, for a checkpoint."""
        return {
            "since_report": self.since_report.to_lists(),
            "since_decision": self.since_decision.to_lists(),
            "decisions": [decision.to_record() for decision in self.decisions],
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SourceProgress:
        """What `to_record` gave.

        Raises:
            ValueError: it gave something else.
        """
        try:
            totals = [SourceTotals.from_lists(record[name]) for name in ("since_report", "since_decision")]
            decisions = [Decision.from_record(decision) for decision in record["decisions"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the totals of sources lack a value: {error}") from None
        lengths = {len(totals[0]), len(totals[1]), *(len(decision.weights) for decision in decisions)}
        if len(lengths) != 1:
            raise ValueError(f"the totals of sources are for {sorted(lengths)} sources")
        return cls(totals[0], totals[1], decisions)


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names of sources; those that occur more than once get a number."""
    occurrences, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} #{seen[name]}" if occurrences[name] > 1 else name)
    return tuple(distinct)


def sources_record(place: dict[str, int], names: Sequence[str], totals: SourceTotals) -> dict[str, Any]:
    """The line of sources.jsonl for an interval that ends at `place`: iteration and consumed samples."""
    samples, tokens, _ = totals.sums.tolist()
    columns = zip(names, samples, tokens, totals.shares, totals.losses, strict=True)
    keys = ("name", "samples", "tokens", "share", "loss")
    return {**place, "sources": [dict(zip(keys, row, strict=True)) for row in columns]}
