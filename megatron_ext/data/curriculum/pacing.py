"""Pacing: which share of the samples, the easiest first, may be drawn at which progress through the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from megatron_ext.data.curriculum.phases import Phase
from megatron_ext.errors import ConfigError

_PHASES = 256
_ROUNDING = 1e-9
PACINGS = ("linear", "root", "steps", "list")


@dataclass(frozen=True)
class Pacing:
    """A competence function c: progress 0 <= t < 1 through the epoch -> share of the easiest samples open to drawing.

    Attributes:
        kind: `linear`, `root`, `steps` (as many equal steps) or `list` (steps given one by one).
        start_share: c(0), except for a list.
        full_at: the progress at which everything is open, except for a list.
        root: c(t) = (c0^root + (1 - c0^root) t / full_at)^(1 / root) for `root`; 1 is linear.
        num_steps: steps of `steps`; the first opens `start_share`, the last everything, at the progress `full_at`.
        points: (progress, share) from which on that share is open, for `list`; the first has progress 0.

    Raises:
        ConfigError: a value is out of range, or at some progress more was drawn than is open.

    Source: Platanios et al. 2019, "Competence-based curriculum learning for neural machine translation", for the root
    function; megatron's users know `root`, `linear` and steps from DeepSpeed's curriculum schedules.
    """

    kind: str = "linear"
    start_share: float = 0.1
    full_at: float = 1.0
    root: float = 2.0
    num_steps: int = 10
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for flag, value, lowest, holds in (
            ("--start-share", self.start_share, "above 0 and at most 1", 0 < self.start_share <= 1),
            ("--full-at", self.full_at, "above 0 and at most 1", 0 < self.full_at <= 1),
            ("--root", self.root, "at least 1", 1 <= self.root < math.inf),
            ("--num-steps", self.num_steps, "at least 1", self.num_steps >= 1),
        ):
            if not holds:
                raise ConfigError(f"{flag} {value} cannot be used", f"It is {lowest}")
        if self.kind not in PACINGS:
            raise ConfigError(f"--pacing {self.kind} does not exist", f"It is one of {', '.join(PACINGS)}")
        if self.kind == "list":
            _check_points(self.points)
        _refuse_too_narrow(self.steps())

    def share(self, progress: float) -> float:
        """c(progress), above 0 and at most 1."""
        steps = self.steps()
        if steps:
            return [share for begin, share in steps if begin <= progress + _ROUNDING][-1]
        root = self.root if self.kind == "root" else 1.0
        low = self.start_share**root
        return min(1.0, (low + (1 - low) * progress / self.full_at) ** (1 / root))

    def steps(self) -> list[tuple[float, float]]:
        """(progress, share) of every step; empty for a function that rises all the time."""
        if self.kind == "list":
            return list(self.points)
        if self.kind != "steps":
            return []
        if self.num_steps == 1:
            return [(0.0, 1.0)]
        last = self.num_steps - 1
        rise = (1 - self.start_share) / last
        # the last step opens everything, so it is the one that begins at `full_at`, where that leaves room for it
        begin = min(self.full_at, last / self.num_steps) / last
        return [(begin * i, self.start_share + rise * i if i < last else 1.0) for i in range(self.num_steps)]


def paced_phases(pacing: Pacing, num_samples: int, phases: int = _PHASES) -> list[Phase]:
    """The phases of a paced epoch, in which every sample is drawn once.

    The epoch is cut in 256 equal phases and where steps begin. A phase from place a to place e draws from the
    ceil(c(a / n) n) easiest samples, or from the e easiest where these are more, since that many are needed by its end.

    Args:
        pacing: the competence function c.
        num_samples: n.
        phases: equal phases.
    """
    cuts = {num_samples * index // phases for index in range(phases + 1)}
    cuts |= {min(num_samples, math.ceil(begin * num_samples - _ROUNDING)) for begin, _ in pacing.steps()}
    bounds = sorted(cuts)
    return [
        Phase(((0, min(num_samples, max(end, _opened(pacing, begin, num_samples)))),), end - begin)
        for begin, end in pairwise(bounds)
    ]


def _opened(pacing: Pacing, place: int, num_samples: int) -> int:
    return math.ceil(pacing.share(place / num_samples) * num_samples - _ROUNDING)


def _check_points(points: Sequence[tuple[float, float]]) -> None:
    rising = all(before[0] < after[0] and before[1] <= after[1] for before, after in pairwise(points))
    if not points or points[0][0] != 0 or points[-1][1] != 1 or not rising or not all(share > 0 for _, share in points):
        shown = " ".join(f"{progress:g}:{share:g}" for progress, share in points)
        raise ConfigError(
            f"--points {shown} is not a pacing",
            "It is PROGRESS:SHARE PROGRESS:SHARE ..., both from 0 to 1; the first progress is 0, the last share 1; the "
            "progress rises and no share falls",
        )


def _refuse_too_narrow(steps: Sequence[tuple[float, float]]) -> None:
    """Until the next step at progress t begins, t of all samples are drawn: more than are open is impossible."""
    for (begin, share), (end, _) in pairwise(steps):
        if end > share + _ROUNDING:
            raise ConfigError(
                f"from progress {begin:g} to {end:g} only the easiest {share:g} of all samples are open",
                f"By progress {end:g} the share {end:g} of them is drawn, each once",
                f"Open at least {end:g} there, or begin the next step by {share:g}",
            )
