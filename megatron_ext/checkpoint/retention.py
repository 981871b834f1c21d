"""Which checkpoints to keep: pure arithmetic, then the deletion."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megatron_ext.checkpoint.names import checkpoint_folder, saved_iterations


def superseded(iterations: list[int], keep_last: int | None, retain_interval: int | None) -> list[int]:
    """Return the iterations to delete, ascending; the newest is never among them.

    Args:
        iterations: those that are saved.
        keep_last: keep this many of the newest; None keeps all, unless `retain_interval` is set, which then
            keeps the newest one as Megatron-LM does.
        retain_interval: keep every iteration that it divides, whatever its age.
    """
    if keep_last is None and retain_interval is None:
        return []
    newest_first = sorted(iterations, reverse=True)
    old = newest_first[keep_last or 1 :]
    return sorted(i for i in old if retain_interval is None or i % retain_interval)


def delete_superseded(root: Path, keep_last: int | None, retain_interval: int | None) -> None:
    """Delete the superseded checkpoints of `root`; rank 0 only, after a newer one has been published.

    A folder is renamed out of the way first, so that a kill in the middle leaves no half checkpoint behind a
    valid name; the next call removes what such a kill left.
    """
    for iteration in superseded(saved_iterations(root), keep_last, retain_interval):
        folder = checkpoint_folder(root, iteration)
        os.replace(folder, root / f".{folder.name}.deleting")
    for leftover in root.glob(".iter_*.deleting"):
        shutil.rmtree(leftover, ignore_errors=True)
