"""A file has its final name only when it is complete (law L7)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from megatron_ext.data.pending import PendingFile
from megatron_ext.errors import DataError


def test_nothing_is_visible_before_publish_and_no_leftover_after(tmp_path: Path):
    file = PendingFile(tmp_path / "x")
    file.write(b"abc")
    file.finish()
    assert not (tmp_path / "x").exists()
    file.publish()
    file.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"abc"
    assert (file.size_bytes, file.sha256) == (3, hashlib.sha256(b"abc").hexdigest())


def test_discarding_leaves_an_older_file_alone(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"old")
    file = PendingFile(tmp_path / "x")
    file.write(b"new")
    file.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_two_runs_cannot_write_the_same_output(tmp_path: Path):
    file = PendingFile(tmp_path / "x")
    with pytest.raises(DataError, match="another run"):
        PendingFile(tmp_path / "x")
    file.discard()
    PendingFile(tmp_path / "x").discard()


def test_what_a_killed_run_left_is_used_anew(tmp_path: Path):
    (tmp_path / "x.partial").write_bytes(b"left by a killed run")
    file = PendingFile(tmp_path / "x")
    file.write(b"abc")
    file.finish()
    file.publish()
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere"):
        PendingFile(tmp_path / "nowhere" / "x")


def test_a_full_disk_is_a_plain_error():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    file = PendingFile.__new__(PendingFile)
    file.path, file._hash, file.size_bytes = full, hashlib.sha256(), 0
    file._stream = full.open("wb", buffering=0)
    with pytest.raises(DataError, match="No space left"):
        file.write(b"x" * 10)
