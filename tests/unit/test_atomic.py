"""A reader sees the old file or folder, or the new one; a crash in between leaves the old one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_ext.atomic import fsync_path, publish_folder, replace_text


class Crash(Exception):
    pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The order in which names are forced to disk and renamed."""
    made: list[tuple[str, str]] = []
    replace = os.replace
    monkeypatch.setattr("megatron_ext.atomic.fsync_path", lambda path: made.append(("fsync", path.name)))
    monkeypatch.setattr("os.replace", lambda old, new: (made.append(("rename", new.name)), replace(old, new)))
    return made


def test_text_takes_the_place_of_the_old(tmp_path: Path):
    path = tmp_path / "file"
    for text in ("first", "second, 第二\n", ""):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_text_is_on_disk_before_its_name_is(tmp_path: Path, calls: list[tuple[str, str]]):
    replace_text(tmp_path / "file", "text")
    (first, written), renamed, folder = calls
    assert first == "fsync" and written.startswith(".file.")
    assert (renamed, folder) == (("rename", "file"), ("fsync", tmp_path.name))


@pytest.mark.parametrize("broken", ["megatron_ext.atomic.fsync_path", "os.replace", "pathlib.Path.write_text"])
def test_a_crash_before_the_rename_leaves_the_old_text(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def crash(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(broken, crash)
    with pytest.raises(Crash):
        replace_text(path, "new")
    assert path.read_bytes() == b"old"


def test_two_processes_do_not_write_the_same_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beside = []
    monkeypatch.setattr("os.replace", lambda old, _: beside.append(old.name))
    for process in (11, 12):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        replace_text(tmp_path / "file", "text")
    assert len(set(beside)) == 2


def test_a_folder_appears_whole(tmp_path: Path, calls: list[tuple[str, str]]):
    staging = tmp_path / ".staging"
    staging.mkdir()
    (staging / "inside").write_text("content")
    publish_folder(staging, tmp_path / "final")
    assert calls == [("fsync", ".staging"), ("rename", "final"), ("fsync", tmp_path.name)]
    assert (tmp_path / "final" / "inside").read_text() == "content" and not staging.exists()


def test_a_folder_with_files_is_never_replaced(tmp_path: Path):
    for name in ("staging", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").write_text(name)
    with pytest.raises(OSError):
        publish_folder(tmp_path / "staging", tmp_path / "final")
    assert (tmp_path / "final" / "inside").read_text() == "final"


@pytest.mark.parametrize("fails", [False, True])
def test_forcing_to_disk_takes_files_and_folders_and_leaks_no_descriptor(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("text")
    opened: list[int] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        opened.append(descriptor)
        fsync(descriptor)
        if fails:
            raise Crash

    monkeypatch.setattr("os.fsync", record)
    for path in (tmp_path / "file", tmp_path):
        if fails:
            with pytest.raises(Crash):
                fsync_path(path)
        else:
            fsync_path(path)
    assert len(opened) == 2
    for descriptor in opened:
        with pytest.raises(OSError):
            os.fstat(descriptor)


def test_a_missing_path_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        fsync_path(tmp_path / "missing")
