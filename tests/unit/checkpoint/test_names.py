"""Names of checkpoints, and the tracker that says which is the newest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.checkpoint.names import (
    TRACKER,
    checkpoint_folder,
    clear_leftovers,
    read_tracker,
    replaced_folder,
    saved_folder,
    saved_iterations,
    staging_folder,
    write_tracker,
)
from megatron_ext.errors import CheckpointError


def test_megatron_names(tmp_path: Path):
    assert checkpoint_folder(tmp_path, 100).name == "iter_0000100"
    assert checkpoint_folder(tmp_path, 12345678).name == "iter_12345678"


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=8, unique=True))
def test_every_folder_that_is_written_is_found_again_in_order(iterations: list[int]):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for iteration in iterations:
            checkpoint_folder(Path(folder), iteration).mkdir()
        assert saved_iterations(Path(folder)) == sorted(iterations)


def test_only_finished_folders_count(tmp_path: Path):
    checkpoint_folder(tmp_path, 7).mkdir()
    staging_folder(tmp_path, 8).mkdir()
    (tmp_path / ".iter_0000009.deleting").mkdir()
    (tmp_path / "iter_0000010").write_text("a file")
    for name in ("iter_12", "iter_000001x", "iter_0000011.bak", "xiter_0000012", "iter_release"):
        (tmp_path / name).mkdir()
    assert saved_iterations(tmp_path) == [7]
    assert saved_iterations(tmp_path / "missing") == []


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name} cannot be read \(Permission denied\)"):
        saved_iterations(tmp_path)


@settings(deadline=None)
@given(iteration=st.integers(0, 10**17))
def test_the_tracker_reads_back_what_was_written(iteration: int):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_tracker(Path(folder), iteration)
        assert read_tracker(Path(folder)) == iteration
        assert os.listdir(folder) == [TRACKER]


def test_no_tracker_is_no_error(tmp_path: Path):
    assert read_tracker(tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"release", b"-3", b"1.5", b"0x10", b"12 13", "\u0663".encode(), b"\xff\x00", b"9" * 6000]
)
def test_a_tracker_without_an_iteration_is_named_with_what_could_stand_in_it(tmp_path: Path, content: bytes):
    (tmp_path / TRACKER).write_bytes(content)
    checkpoint_folder(tmp_path, 40).mkdir()
    with pytest.raises(CheckpointError, match=rf"{TRACKER} holds .*\[40\].*--ckpt-step"):
        read_tracker(tmp_path)


def test_a_tracker_that_cannot_be_read(tmp_path: Path):
    (tmp_path / TRACKER).mkdir()
    with pytest.raises(CheckpointError, match=f"{TRACKER} cannot be read"):
        read_tracker(tmp_path)


def test_while_a_checkpoint_is_being_replaced_the_old_one_is_read(tmp_path: Path):
    replaced_folder(tmp_path, 5).mkdir()
    assert saved_iterations(tmp_path) == [5]
    assert saved_folder(tmp_path, 5) == replaced_folder(tmp_path, 5)
    checkpoint_folder(tmp_path, 5).mkdir()
    assert saved_iterations(tmp_path) == [5]
    assert saved_folder(tmp_path, 5) == checkpoint_folder(tmp_path, 5)


def test_leftovers_go_and_whole_checkpoints_stay(tmp_path: Path):
    for folder in (checkpoint_folder(tmp_path, 1), staging_folder(tmp_path, 3), replaced_folder(tmp_path, 1)):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    (tmp_path / ".iter_0000002.deleting").mkdir()
    replaced_folder(tmp_path, 4).mkdir()
    (replaced_folder(tmp_path, 4) / "file").write_text("four")
    (tmp_path / f".{TRACKER}.77.writing").write_text("5\n")
    (tmp_path / "notes").mkdir()
    write_tracker(tmp_path, 4)
    clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["iter_0000001", "iter_0000004", TRACKER, "notes"]
    assert (checkpoint_folder(tmp_path, 1) / "file").read_text() == "iter_0000001"
    assert (checkpoint_folder(tmp_path, 4) / "file").read_text() == "four"
