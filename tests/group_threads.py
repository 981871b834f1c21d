"""The threads of gloo's groups, by which a test sees whether a group is really gone."""

from __future__ import annotations

import gc
import time
from pathlib import Path

KEPT = 1
"""megatron-core 0.16 goes on holding one group of a layout, that of the partial distributed optimizer, until the next
layout starts."""


def group_threads() -> set[int]:
    """Return the threads of this process that wait for other ranks: one per group."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(task.name) for task in tasks if (task / "comm").read_text().strip() == "gloo_tcp_loop"}


def assert_groups_are_gone(before: set[int], timeout_s: float = 10.0) -> None:
    """Fail if more than `KEPT` groups are held that were not there BEFORE."""
    gc.collect()
    end = time.monotonic() + timeout_s
    # a joined thread is still listed for a moment
    while len(held := group_threads() - before) > KEPT:
        assert time.monotonic() < end, f"{len(held)} groups are still held: their threads go on waking"
        time.sleep(0.01)
