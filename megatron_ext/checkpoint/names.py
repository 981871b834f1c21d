"""Where checkpoints lie inside the `--save` folder: Megatron-LM's names.

SAVE/iter_0000100/                         one checkpoint
SAVE/latest_checkpointed_iteration.txt     the newest one's iteration, changed by rename only
SAVE/.iter_0000100.{writing,replaced,deleting}   what a save works with; a killed one leaves it, the next one clears it
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from megatron_ext.atomic import replace_text
from megatron_ext.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
_FOLDER = re.compile(r"iter_(\d{7,18})")
_REPLACED = re.compile(r"\.iter_(\d{7,18})\.replaced")


def checkpoint_folder(root: Path, iteration: int) -> Path:
    """Return the folder of the checkpoint of `iteration`."""
    return root / f"iter_{iteration:07d}"


def staging_folder(root: Path, iteration: int) -> Path:
    """Return the folder in which the checkpoint of `iteration` is written before it is renamed."""
    return root / f".iter_{iteration:07d}.writing"


def replaced_folder(root: Path, iteration: int) -> Path:
    """Return where a checkpoint waits while another one of the same iteration takes its name."""
    return root / f".iter_{iteration:07d}.replaced"


def saved_folder(root: Path, iteration: int) -> Path:
    """Return the folder to read `iteration` from: after a kill between two renames, the one that was being replaced."""
    folder, replaced = checkpoint_folder(root, iteration), replaced_folder(root, iteration)
    return replaced if replaced.is_dir() and not folder.exists() else folder


def saved_iterations(root: Path) -> list[int]:
    """Return the iterations that have a finished (renamed) folder, ascending.

    Raises:
        CheckpointError: the folder cannot be listed.
    """
    try:
        names = [entry.name for entry in root.iterdir() if entry.is_dir()] if root.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{root} cannot be read ({error.strerror})") from None
    matches = (_FOLDER.fullmatch(name) or _REPLACED.fullmatch(name) for name in names)
    return sorted({int(match[1]) for match in matches if match})


def clear_leftovers(root: Path) -> None:
    """Remove what killed saves left in `root`, and give a checkpoint that was being replaced its name back."""
    for replaced in root.glob(".iter_*.replaced"):
        match = _REPLACED.fullmatch(replaced.name)
        folder = checkpoint_folder(root, int(match[1])) if match else None
        if folder is not None and not folder.exists():
            os.replace(replaced, folder)
    for pattern in (".iter_*.writing", ".iter_*.deleting", ".iter_*.replaced"):
        for leftover in root.glob(pattern):
            shutil.rmtree(leftover)
    for leftover in root.glob(f".{TRACKER}.*.writing"):
        leftover.unlink()


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
    except OSError as error:
        raise CheckpointError(
            f"{tracker} cannot be read ({error.strerror})", fix="or choose with --ckpt-step"
        ) from None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise CheckpointError(
            f"{tracker} holds {text[:40]!r}, not an iteration",
            fix=f"write one of {saved_iterations(root)} into it, or choose one with --ckpt-step",
        )
    return int(text)


def write_tracker(root: Path, iteration: int) -> None:
    """Point the tracker at `iteration`, atomically."""
    replace_text(root / TRACKER, f"{iteration}\n")
