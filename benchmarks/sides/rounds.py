"""Rounds in which the sides take turns, what they are compared by, and what a line says about the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 5e-4
"""Relative, of losses over the first steps: sides that round in other places differ by up to 8e-5; scored on other
labels, untrained weights differ by 1e-3."""
NORM_TOLERANCE = 0.03


def in_turns(sides: Mapping[str, Callable[[int], float]], rounds: int, first: int) -> dict[str, list[float]]:
    """What each side returns (seconds, a rate) in each round; every other round goes in reverse.

    Args:
        sides: name -> work on the batch of an index.
        rounds: how often.
        first: the index of the first round's batch.
    """
    results: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            results[name].append(sides[name](first + number))
    return results


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Least, median, largest."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return {"min": round(ordered[0], digits), "median": round(middle, digits), "max": round(ordered[-1], digits)}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Spread of the ratio round by round, each of two values taken one after the other."""
    return spread(one / other for one, other in zip(above, below, strict=True))


def refuse_different(values: Mapping[str, Sequence[float]], reference: str, what: str, tolerance: float) -> None:
    """End the benchmark when the sides do not compute the same thing.

    Raises:
        SystemExit: some value is further from the reference's than `tolerance`, relatively.
    """
    expected = values[reference]
    for name, got in values.items():
        for mine, theirs in zip(expected, got, strict=True):
            if not abs(mine - theirs) <= tolerance * abs(mine):
                raise SystemExit(f"{name} computes another {what}: {list(got)} against {list(expected)}")


def refuse_different_steps(outcomes: Mapping[str, Sequence[Sequence[float]]], reference: str) -> dict[str, list[float]]:
    """The same for first steps, each (loss, gradient norm); returns the losses, rounded, to be printed."""
    losses = {name: [outcome[0] for outcome in steps] for name, steps in outcomes.items()}
    refuse_different(losses, reference, "loss", TOLERANCE)
    norms = {name: [outcome[1] for outcome in steps] for name, steps in outcomes.items()}
    refuse_different(norms, reference, "gradient norm", NORM_TOLERANCE)
    return {name: [round(value, 4) for value in values] for name, values in losses.items()}


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def machine(load_before: float) -> dict[str, Any]:
    """What a line says about where it was measured: versions, CPU, and the load before and after."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "megatron-core")}
    return {
        "load_average": [load_before, load_average()],
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        **versions,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
