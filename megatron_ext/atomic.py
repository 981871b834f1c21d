"""Publishing files so that a reader sees the old or the new one, never half of one (law L7)."""

from __future__ import annotations

import os
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Write `text` beside `path`, force it to disk, and rename it over `path`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    beside.write_text(text, encoding="utf-8")
    fsync_path(beside)
    os.replace(beside, path)
    fsync_path(path.parent)


def publish_folder(staging: Path, final: Path) -> None:
    """Rename the finished folder `staging` to `final`, its files already on disk."""
    fsync_path(staging)
    os.replace(staging, final)
    fsync_path(final.parent)
