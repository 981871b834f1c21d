"""Trains cases in groups of gloo processes, a few cases in a launch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.distributed.processes import run_worker

CASES_IN_A_LAUNCH = 16
"""So few that a launch ends well within the time that its processes get."""


def train_cases(out: Path, processes: int, cases: Sequence[tuple[str, str, str, int]]) -> None:
    """Train each (name, model of `tiny.MODELS`, flags, steps) on OUT/data and leave OUT/NAME.npz."""
    listed = [
        {"name": name, "model": model, "flags": flags, "steps": steps, "data": str(out / "data")}
        for name, model, flags, steps in cases
    ]
    on_gpus = "--device cuda" in cases[0][2]
    for first in range(0, len(listed), CASES_IN_A_LAUNCH):
        file = out / f"cases{processes}_{first}.json"
        file.write_text(json.dumps(listed[first : first + CASES_IN_A_LAUNCH]), encoding="utf-8")
        run_worker("tests.distributed.layouts_worker", processes, [str(file), str(out), str(processes)], 840.0, on_gpus)
