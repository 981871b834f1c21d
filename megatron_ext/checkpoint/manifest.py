"""The manifest of a checkpoint: every file's size and SHA-256, written last, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from megatron_ext.atomic import fsync_path, replace_text
from megatron_ext.errors import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 22


def files_of(folder: Path) -> list[str]:
    """Return the relative names of all files and links in a checkpoint folder but the manifest, sorted."""
    entries = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in entries)
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
    replace_text(folder / MANIFEST, _text_of(files))


def read_manifest(folder: Path) -> dict[str, dict[str, int | str]]:
    """Return relative name -> size and checksum.

    Raises:
        CheckpointError: there is no manifest or it cannot be read, so the checkpoint was not finished.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        if not isinstance(content, dict) or set(content) != {"format", "files"}:
            raise ValueError("it is not a manifest")
        if content["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {content['format']!r}", f"this release reads format {FORMAT}")
        for name, entry in content["files"].items():
            _check_entry(name, entry)
        if text != _text_of(content["files"]):
            raise ValueError("it is not as it was written")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it is not a finished checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error})") from None
    return content["files"]


def faults_of_files(folder: Path, files: dict[str, dict[str, int | str]], names: list[str]) -> list[str]:
    """Compare `names` with the manifest entries and say what differs: missing, wrong size, wrong checksum."""
    faults = []
    for name in names:
        try:
            fault = _fault_of_file(folder, name, files[name])
        except OSError as error:
            fault = f"{name} cannot be read ({error.strerror})"
        if fault:
            faults.append(fault)
    return faults


def _fault_of_file(folder: Path, name: str, expected: dict[str, int | str]) -> str | None:
    path = folder / name
    if path.resolve() != folder.resolve() / name:
        return f"{name} is a link"
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"{name} has {path.stat().st_size} bytes, the manifest says {expected['bytes']}"
    if sha256(path) != expected["sha256"]:
        return f"{name} has another checksum than the manifest says"
    return None


def _text_of(files: dict[str, dict[str, int | str]]) -> str:
    return json.dumps({"format": FORMAT, "files": dict(sorted(files.items()))}, indent=1) + "\n"


def _check_entry(name: str, entry: Any) -> None:
    """A name from a file never leaves the checkpoint's folder, and an entry is a size and a checksum."""
    if not is_plain_name(name):
        raise ValueError(f"the file name {name[:80]!r} points outside the folder")
    if set(entry) != {"bytes", "sha256"} or type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
        raise ValueError(f"its entry of {name[:80]} is not a size and a checksum")


def is_plain_name(name: str) -> bool:
    """Whether a relative name, `/` between its parts, stays inside the folder that it is joined to."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\0" not in part for part in parts)
