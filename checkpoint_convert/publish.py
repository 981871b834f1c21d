"""A folder that is there whole or not at all: written beside its place, flushed to disk, renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_ext.atomic import fsync_path, publish_folder
from megatron_ext.errors import ConversionError


def check_free(target: Path) -> None:
    """Raise ConversionError unless nothing, or an empty folder, stands at `target` and its parent can take it."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ConversionError(f"--save {target} is a file or a link", fix="name a new folder")
    if target.is_dir() and any(target.iterdir()):
        raise ConversionError(
            f"--save {target} is not empty", "an existing folder is never overwritten", "name a new folder or remove it"
        )


@contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """Give a new folder to write into; on leaving without an error it becomes `target`, otherwise it is removed.

    Files get mode 0644 and folders 0755, whatever made them, and are flushed before the rename.

    Raises:
        ConversionError: `target` is not free.
    """
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield beside
        for path in [*beside.rglob("*"), beside]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            fsync_path(path)
        if target.is_dir():
            target.rmdir()
        publish_folder(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
