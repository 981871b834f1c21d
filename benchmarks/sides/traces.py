"""Readings of a torch.profiler trace: memory between two marks, and time in collectives."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN, END = "measured part begins", "measured part ends"
"""Names of `torch.profiler.record_function` marks."""
BYTES = {"float": 4, "c10::BFloat16": 2, "double": 8, "long int": 8, "int": 4, "unsigned char": 1}
Interval = tuple[float, float]


def trace_of(work: Callable[[], object], memory: bool = False) -> list[dict[str, Any]]:
    """The events of a piece of work in order of time, as torch.profiler exports them: CPU operators, maybe memory."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=memory) as profiler:
        work()
    with tempfile.TemporaryDirectory(prefix="bench_trace_") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return sorted((event for event in events if "ts" in event), key=lambda event: event["ts"])


def peak_between_marks(events: list[dict[str, Any]]) -> int:
    """The largest number of bytes that torch's allocator holds between the marks beyond those at the first mark.

    Exact for what goes through the allocator, also inside operators; not for what a library takes from the system.

    Raises:
        SystemExit: the trace has not one mark of each kind.
    """
    marks = [[event["ts"] for event in events if event["name"] == name] for name in (BEGIN, END)]
    if [len(times) for times in marks] != [1, 1]:
        raise SystemExit(f"the trace has {[len(times) for times in marks]} marks, not one of each")
    begin, end = marks[0][0], marks[1][0]
    held = peak = 0
    for event in events:
        if event["name"] == "[memory]" and begin <= event["ts"] <= end:
            held += event["args"]["Bytes"]
            peak = max(peak, held)
    return peak


def collectives_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Calls, megabytes (of this rank's own tensor) and seconds of each kind of gloo's collectives.

    A collective's seconds go from its start to its end on this rank, so waiting for a later rank is in them.
    `exposed_seconds` is the part of all of them during which the main thread computes nothing.
    """
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0, "mb": 0.0, "seconds": 0.0})
    inside: list[Interval] = []
    for event in events:
        if not event["name"].startswith("gloo:"):
            continue
        args = event["args"]
        dtypes, sizes = args.get("Input type", []), args.get("Input Dims", [])
        kind = kinds[f"{event['name'].removeprefix('gloo:')} {' '.join(sorted(set(dtypes)))}"]
        kind["calls"] += 1
        kind["mb"] += sum(_product(size) * BYTES[dtype] for size, dtype in zip(sizes, dtypes, strict=True)) / 1e6
        kind["seconds"] += event["dur"] / 1e6
        inside.append((event["ts"], event["ts"] + event["dur"]))
    main = next((event["tid"] for event in events if event["name"] == BEGIN), None)
    computing = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event["name"].startswith("aten::") and event["tid"] == main and "dur" in event
    ]
    return {
        "by_kind": {name: {key: round(value, 3) for key, value in kind.items()} for name, kind in kinds.items()},
        "seconds": _length(inside) / 1e6,
        "exposed_seconds": (_length(inside + computing) - _length(computing)) / 1e6,
    }


def _product(size: list[int]) -> int:
    total = 1
    for length in size:
        total *= length
    return total


def _length(intervals: list[Interval]) -> float:
    """Length of the union."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
