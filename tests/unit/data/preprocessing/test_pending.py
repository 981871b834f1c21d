"""A file has its final name only when it is complete (law L7)."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import signal
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.preprocessing.pending import PendingFile, partial_path
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


@pytest.mark.parametrize("call", ["write", "sync", "finish"])
@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "Free disk space"), (errno.EIO, "fails"), (errno.EROFS, "read-only")]
)
def test_a_disk_that_refuses_is_a_plain_error(call: str, number: int, remedy: str, tmp_path: Path):
    class Refusing(io.BytesIO):
        def refuse(self, *_: object) -> int:
            raise OSError(number, os.strerror(number))

        write = refuse if call == "write" else io.BytesIO.write
        flush = refuse

    file = PendingFile(tmp_path / "x")
    real, file._stream = file._stream, Refusing()
    with pytest.raises(DataError, match=f"writing .*x failed .{os.strerror(number)}.*{remedy}"):
        file.write(b"x" * 10) if call == "write" else getattr(file, call)()
    file._stream = real
    file.discard()


def test_a_full_disk_is_told_of_and_leaves_nothing(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    file = PendingFile(tmp_path / "x")
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), file._stream.fileno())
    file.write(b"x" * 10)
    with pytest.raises(DataError, match=r"No space left.*Free disk space"):
        file.sync()
    file.discard()
    assert not list(tmp_path.iterdir())


def killed(path: Path, content: bytes, after: bytes = b"") -> None:
    """What a run leaves that synced this content, wrote some more, and was killed."""
    file = PendingFile(path)
    file.write(content)
    file.sync()
    file.write(after)
    file.keep()


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=500), st.binary(max_size=500))
def test_resuming_goes_on_after_what_was_synced(content: bytes, lost: bytes, more: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        killed(path, content, lost)
        file = PendingFile.resume(path, len(content), hashlib.sha256(content).hexdigest())
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        file.write(more)
        file.finish()
        file.publish()
        assert [entry.name for entry in Path(folder).iterdir()] == ["x"]
        assert path.read_bytes() == content + more
        assert (file.size_bytes, file.sha256) == (
            len(content + more),
            hashlib.sha256(content + more).hexdigest(),
        )


@pytest.mark.parametrize("call", ["sync", "finish"])
def test_what_was_written_is_forced_to_disk(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = PendingFile(tmp_path / "x")
    file.write(b"abc")
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: forced.append(os.fstat(descriptor).st_size))
    getattr(file, call)()
    assert forced == [3]
    file.discard()


def test_resuming_again_and_again_and_over_many_blocks(tmp_path: Path):
    content = random.Random(3).randbytes(5 << 20)
    killed(tmp_path / "x", content[: 3 << 20], b"lost")
    for end in (4 << 20, 5 << 20):
        file = PendingFile.resume(tmp_path / "x", end - (1 << 20))
        file.write(content[end - (1 << 20) : end])
        file.sync()
        file.write(b"lost again")
        file.keep()
    file = PendingFile.resume(tmp_path / "x", len(content))
    file.finish()
    file.publish()
    assert (tmp_path / "x").read_bytes() == content and file.sha256 == hashlib.sha256(content).hexdigest()


def test_synced_content_survives_a_kill(tmp_path: Path):
    child = os.fork()
    if child == 0:
        file = PendingFile(tmp_path / "x")
        file.write(b"abc")
        file.sync()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    file = PendingFile.resume(tmp_path / "x", 3)
    assert file.sha256 == hashlib.sha256(b"abc").hexdigest()
    file.discard()
    assert not list(tmp_path.iterdir())


def test_a_partial_file_shorter_than_the_journal_says_is_refused_and_left_alone(tmp_path: Path):
    killed(tmp_path / "x", b"abc")
    with pytest.raises(DataError, match=r"x\.partial has 3 bytes. .*4 were written.*--overwrite"):
        PendingFile.resume(tmp_path / "x", 4)
    assert (tmp_path / "x.partial").read_bytes() == b"abc"
    PendingFile.resume(tmp_path / "x", 3).discard()


def test_a_partial_file_with_other_content_is_refused(tmp_path: Path):
    killed(tmp_path / "x", b"abc")
    with pytest.raises(DataError, match="is damaged: the sha256 of its first 2 bytes"):
        PendingFile.resume(tmp_path / "x", 2, hashlib.sha256(b"xy").hexdigest())


def test_a_missing_partial_file_is_named_unless_nothing_of_it_is_needed(tmp_path: Path):
    with pytest.raises(DataError, match=r"no .*x\.partial to go on with"):
        PendingFile.resume(tmp_path / "x", 1)
    file = PendingFile.resume(tmp_path / "x", 0)
    file.write(b"abc")
    file.finish()
    file.publish()
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_two_runs_cannot_resume_the_same_output(tmp_path: Path):
    killed(tmp_path / "x", b"abc")
    file = PendingFile.resume(tmp_path / "x", 3)
    for second in (lambda: PendingFile.resume(tmp_path / "x", 3), lambda: PendingFile(tmp_path / "x")):
        with pytest.raises(DataError, match="another run"):
            second()
    assert partial_path(tmp_path / "x").read_bytes() == b"abc"
    file.discard()


def test_keeping_leaves_the_file_and_its_name_to_the_next_run(tmp_path: Path):
    killed(tmp_path / "x", b"abc", b"def")
    file = PendingFile.resume(tmp_path / "x", 6)
    file.keep()
    file.discard()
    file.keep()
    assert (tmp_path / "x.partial").read_bytes() == b"abcdef"


def test_no_file_stays_open(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    killed(tmp_path / "x", b"abc")
    for size, checksum in ((9, None), (3, "no checksum")):
        with pytest.raises(DataError):
            PendingFile.resume(tmp_path / "x", size, checksum)
    assert len(os.listdir("/proc/self/fd")) == before
