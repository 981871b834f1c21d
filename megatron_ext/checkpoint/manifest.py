"""The manifest of a checkpoint: every file's size and SHA-256, written last, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron_ext.atomic import fsync_path, replace_text
from megatron_ext.errors import CheckpointError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22


def files_of(folder: Path) -> list[str]:
    """Return the relative names of all files in a checkpoint folder but the manifest, sorted."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def describe_file(path: Path) -> dict[str, int | str]:
    """Force the file to disk and return its size and checksum."""
    fsync_path(path)
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, files: dict[str, dict[str, int | str]]) -> None:
    """Write the manifest of `folder`; the last file of a checkpoint."""
    text = json.dumps({"format": 1, "files": dict(sorted(files.items()))}, indent=1)
    replace_text(folder / MANIFEST, text + "\n")


def read_manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return relative name -> size and checksum.

    Raises:
        CheckpointError: there is no manifest or it cannot be read, so the checkpoint was not finished.
    """
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        # a name from a file never leaves the checkpoint's folder
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
            raise ValueError("a file name points outside the folder")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it is not a finished checkpoint") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    return files


def faults_of_files(folder: Path, files: dict[str, dict[str, int | str]], names: list[str]) -> list[str]:
    """Compare `names` with the manifest entries and say what differs: missing, wrong size, wrong checksum."""
    faults = []
    for name in names:
        path, expected = folder / name, files[name]
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != expected["bytes"]:
            faults.append(f"{name} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}")
        elif sha256(path) != expected["sha256"]:
            faults.append(f"{name} has another checksum than the manifest says")
    return faults
