"""Where checkpoints lie inside the `--save` folder: Megatron-LM's names.

SAVE/iter_0000100/                         one checkpoint
SAVE/latest_checkpointed_iteration.txt     the newest one's iteration, changed by rename only
"""

from __future__ import annotations

import re
from pathlib import Path

from megatron_ext.atomic import replace_text
from megatron_ext.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iter_(\d{7,})")


def checkpoint_folder(root: Path, iteration: int) -> Path:
    """Return the folder of the checkpoint of `iteration`."""
    return root / f"iter_{iteration:07d}"


def staging_folder(root: Path, iteration: int) -> Path:
    """Return the folder in which the checkpoint of `iteration` is written before it is renamed."""
    return root / f".iter_{iteration:07d}.writing"


def saved_iterations(root: Path) -> list[int]:
    """Return the iterations that have a finished (renamed) folder, ascending."""
    if not root.is_dir():
        return []
    matches = (_FOLDER.fullmatch(entry.name) for entry in root.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in matches if match)


def read_tracker(root: Path) -> int | None:
    """Return the newest iteration by the tracker file; None when there is no tracker.

    Raises:
        CheckpointError: the tracker is there but does not hold an iteration.
    """
    tracker = root / TRACKER
    try:
        text = tracker.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    if not text.isdecimal():
        raise CheckpointError(
            f"{tracker} holds {text[:40]!r}, not an iteration",
            fix=f"write one of {saved_iterations(root)} into it, or choose one with --ckpt-step",
        )
    return int(text)


def write_tracker(root: Path, iteration: int) -> None:
    """Point the tracker at `iteration`, atomically."""
    replace_text(root / TRACKER, f"{iteration}\n")
