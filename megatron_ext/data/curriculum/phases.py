"""Orders made of phases: each draws so many samples, without replacement, from some ranges of difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_ext.data.curriculum.seeded import groups, shuffled
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        ranges: (first, last) ranks it draws from, last excluded; they may overlap, also with those of other phases.
        count: samples it draws.
        name: what messages call it.
        mixed: its samples are given among those of the phase before, all of them shuffled together.
    """

    ranges: tuple[tuple[int, int], ...]
    count: int
    name: str = ""
    mixed: bool = False


class PhasedOrder:
    """Where each sample stands when phases draw one after the other, as a function of its rank in difficulty.

    A phase takes the same share (to within one sample) of what earlier phases left in every part of its ranges; which
    samples, and in which order it gives them, is shuffled by the seed. Memory: two tables of parts x phases.

    Args:
        phases: in their order.
        num_samples: ranks there are.
        seed: decides the shuffles.

    Attributes:
        num_places: samples that all phases draw together.

    Raises:
        DataError: a phase asks for more samples than its ranges have left.
    """

    def __init__(self, phases: Sequence[Phase], num_samples: int, seed: int) -> None:
        edges = {0, num_samples, *(rank for phase in phases for bounds in phase.ranges for rank in bounds)}
        self._edges = np.array(sorted(edges), np.int64)
        self._seed = seed
        left = np.diff(self._edges)
        drawn = np.zeros((len(left), len(phases)), np.int64)
        for index, phase in enumerate(phases):
            inside = self._parts_of(phase)
            drawn[inside, index] = _shares(left[inside], phase, index, seed)
            left -= drawn[:, index]
        counts = drawn.sum(axis=0)
        self.num_places = int(counts.sum())
        before = np.cumsum(counts) - counts
        begins_one = [not index or not phase.mixed for index, phase in enumerate(phases)]
        self._starts = np.append(before[begins_one], self.num_places)  # places before each mixture of phases
        # the mixture of each phase, and one more for what no phase draws
        self._mixtures = np.append(np.cumsum(begins_one) - 1, len(self._starts) - 1)
        self._ends = np.cumsum(drawn, axis=1)
        # added to a place in the shuffle of a part, it is the place among all of the mixture
        in_phase = (np.cumsum(drawn, axis=0) - drawn) - (self._ends - drawn)
        self._offsets = in_phase + (before - self._starts[self._mixtures[:-1]])

    def places(self, ranks: Int64Array) -> Int64Array:
        """Places int64 `[k]` of `ranks` int64 `[k]`; -1 for what no phase draws."""
        places = np.full(len(ranks), -1, np.int64)
        mixtures = np.empty(len(ranks), np.int64)
        parts = np.searchsorted(self._edges, ranks, side="right") - 1
        for part, here in groups(parts, len(self._ends)):
            first, last = int(self._edges[part]), int(self._edges[part + 1])
            in_part = shuffled(ranks[here] - first, last - first, self._seed, "part", first, last)
            phase = np.searchsorted(self._ends[part], in_part, side="right")
            mixtures[here] = self._mixtures[phase]
            drawn = phase < self._ends.shape[1]
            places[here[drawn]] = in_part[drawn] + self._offsets[part, phase[drawn]]
        for index, here in groups(mixtures, len(self._starts)):
            if index < len(self._starts) - 1:
                first, last = int(self._starts[index]), int(self._starts[index + 1])
                places[here] = first + shuffled(places[here], last - first, self._seed, "phase", index)
        return places

    def _parts_of(self, phase: Phase) -> Int64Array:
        inside = np.zeros(len(self._edges) - 1, bool)
        for first, last in phase.ranges:
            inside[np.searchsorted(self._edges, first) : np.searchsorted(self._edges, last)] = True
        return np.flatnonzero(inside)


def _shares(left: Int64Array, phase: Phase, index: int, seed: int) -> Int64Array:
    """How many of a phase's samples come from each of its parts, which have `left` int64 `[parts]` samples."""
    available = int(left.sum())
    if phase.count > available:
        raise DataError(
            f"{phase.name or f'phase {index}'} asks for {phase.count} samples",
            f"The phases before it left {available} samples in its ranges; no sample is given twice",
            "Ask for fewer tokens, or wider ranges",
        )
    if not available:
        return left
    # Systematic sampling: every (available / count)-th sample from a random one on. Without the random start a phase
    # of a few samples would always take them from the same, hardest part.
    start = shuffled(np.zeros(1, np.int64), available, seed, "share", index).astype(np.uint64)
    bounds = np.append(0, np.cumsum(left)).astype(np.uint64)  # below 2^32, so the products fit in 64 bits
    shares = ((bounds * np.uint64(phase.count) + start) // np.uint64(available)).astype(np.int64)
    return shares[1:] - shares[:-1]
