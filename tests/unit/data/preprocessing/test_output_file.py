"""One run alone writes a file, and what the system refuses is told with its remedy."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ext.data.preprocessing import output_file
from megatron_ext.data.preprocessing.output_file import open_locked, writing_failed
from megatron_ext.errors import DataError

ROOT = Path(output_file.__file__).resolve().parents[3]


def test_the_second_is_refused_until_the_first_closes(tmp_path: Path):
    path, shown = tmp_path / "x.partial", tmp_path / "x"
    first = open_locked(path, shown, create=True)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DataError, match=f"another run is writing {shown}"):
        open_locked(path, shown, create=True)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(first)
    os.close(open_locked(path, shown, create=False))


def test_a_killed_run_holds_nothing(tmp_path: Path):
    code = (
        "import os, sys, pathlib\n"
        "from megatron_ext.data.preprocessing.output_file import open_locked\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "open_locked(path, path, create=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], cwd=ROOT, check=False)
    assert done.returncode == -9
    os.close(open_locked(tmp_path / "x", tmp_path / "x", create=False))


@pytest.mark.parametrize("finish", [lambda path: path.rename(path.with_suffix(".done")), lambda path: path.unlink()])
def test_a_file_that_another_run_finishes_between_opening_and_locking_is_left_alone(
    finish: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x"
    path.write_text("the other run's")
    flock = fcntl.flock
    calls = []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            finish(path)
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    descriptor = open_locked(path, path, create=True)
    assert len(calls) == 2 and os.fstat(descriptor).st_size == 0 and os.path.samestat(os.fstat(descriptor), path.stat())
    assert not path.with_suffix(".done").exists() or path.with_suffix(".done").read_text() == "the other run's"
    os.close(descriptor)


def test_a_missing_file_is_the_callers_to_explain(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        open_locked(tmp_path / "x", tmp_path / "x", create=False)
    with pytest.raises(DataError, match=r"cannot be written \(No such file.*Create its folder"):
        open_locked(tmp_path / "nowhere" / "x", tmp_path / "nowhere" / "x", create=True)
    with pytest.raises(DataError, match=r"cannot be written \(Is a directory"):
        open_locked(tmp_path, tmp_path, create=False)


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    warnings: list[str] = []
    monkeypatch.setattr("megatron_ext.log.warn", warnings.append)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    os.close(open_locked(tmp_path / "x", tmp_path / "x", create=True))
    assert len(warnings) == 1 and "cannot be locked" in warnings[0]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free disk space"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "disk or its file system fails"),
        (errno.EROFS, "read-only"),
        (errno.ESTALE, "Mend that"),
    ],
)
def test_each_refusal_has_its_remedy(number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    error = OSError(number, os.strerror(number))
    failure = writing_failed(tmp_path / "x", error)
    assert os.strerror(number) in failure.what and str(tmp_path / "x") in failure.what and remedy in failure.fix

    def refuse(*_: object) -> int:
        raise error

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DataError) as raised:
        open_locked(tmp_path / "x", tmp_path / "x", create=True)
    assert os.strerror(number) in raised.value.what
    assert remedy in raised.value.fix or number == errno.ESTALE
