"""Which checkpoints to keep: pure arithmetic, then the deletion."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from megatron_ext.checkpoint.names import checkpoint_folder, saved_iterations


def superseded(iterations: list[int], newest: int, keep_last: int | None, retain_interval: int | None) -> list[int]:
    """Return the iterations to delete, ascending; `newest` is never among them.

    Later iterations than `newest` are of a run that was left behind (a start from an older checkpoint): they are
    not counted and not deleted, for nobody said that they are worth less.

    Args:
        iterations: those that are saved.
        newest: the one that was just saved.
        keep_last: keep this many, `newest` and those before it; None keeps all, unless `retain_interval` is set,
            which then keeps `newest` as Megatron-LM does.
        retain_interval: keep every iteration that it divides, whatever its age.
    """
    if keep_last is None and retain_interval is None:
        return []
    before = sorted((i for i in iterations if i < newest), reverse=True)
    old = before[(keep_last or 1) - 1 :]
    return sorted(i for i in old if retain_interval is None or i % retain_interval)


def delete_superseded(root: Path, newest: int, keep_last: int | None, retain_interval: int | None) -> None:
    """Delete the superseded checkpoints of `root`; rank 0 only, after `newest` has been published.

    A folder is renamed out of the way first, so that a kill in the middle leaves no half checkpoint behind a
    valid name; the next save removes what such a kill left.
    """
    for iteration in superseded(saved_iterations(root), newest, keep_last, retain_interval):
        folder = checkpoint_folder(root, iteration)
        deleting = root / f".{folder.name}.deleting"
        os.replace(folder, deleting)
        shutil.rmtree(deleting, ignore_errors=True)
