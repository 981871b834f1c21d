"""A full disk or an output that cannot be written is one clear error: nothing is half published, nothing old lost."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.data.preprocessing.preprocess import preprocess
from megatron_ext.errors import DataError
from tests.unit.data.limited_disk import content, request_for
from tests.unit.data.small import write_jsonl

PUBLISHED = {"out_text_document.bin", "out_text_document.idx", "out_text_document.manifest.json"}
QUARANTINE = "out.quarantine.jsonl"


def write_corpus(folder: Path) -> Path:
    """16 blocks of lines, some of them bad."""
    path = folder / "in.jsonl"
    lines = [json.dumps({"text": " ".join(str((line + word) % 99) for word in range(30))}) for line in range(300)]
    lines[::20] = ["{broken"] * 15
    path.write_text("\n".join(lines) + "\n")
    return path


def runs(folder: Path, repo_root: Path, old: str, limits: list[int]) -> list[dict]:
    words = [sys.executable, "-m", "tests.unit.data.limited_disk", str(folder), old, *map(str, limits)]
    done = subprocess.run(words, cwd=repo_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("old", ["new", "old"])
def test_a_disk_full_after_any_number_of_bytes(old: str, tmp_path: Path, repo_root: Path):
    """Each file may have so many bytes: the journal meets the limit, then the tokens, the index, the quarantine."""
    write_corpus(tmp_path)
    write_jsonl(tmp_path / "old.jsonl", ["1 2 3"])
    preprocess(request_for(tmp_path, "whole"))
    wanted = content(tmp_path / "whole")
    assert set(wanted) == {*PUBLISHED, QUARANTINE}
    largest = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    limits = [0, 1, 100, 500, 1000, *range(2000, 2 * largest, largest // 14)]
    told = runs(tmp_path, repo_root, old, limits)
    assert [one["limit"] for one in told] == limits
    assert [one["error"] for one in told[-3:]] == [None] * 3, "the largest limits are none"
    kept = 0
    for one in told:
        assert one["final"] == wanted, one
        if one["error"] is None:
            continue
        assert "File too large" in one["error"], one
        assert "ulimit -f" in one["error"], one
        assert "\n" not in one["error"], one
        if "out.journal" in one["after"]:
            kept += 1
            assert one["after"].keys() - one["before"].keys() > {"out.journal", "out_text_document.bin.partial"}
        else:
            assert one["after"] == one["before"], one
        assert not (PUBLISHED | {QUARANTINE}) & one["after"].keys() - one["before"].keys(), one
        assert all(one["after"][name] == checksum for name, checksum in one["before"].items()), one
    assert kept > 3, "no limit was met after a commit"
    assert sum(one["error"] is not None for one in told) > kept + 3, "no limit was met before a commit"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_small_file_system_that_fills_up(tmp_path: Path):
    write_corpus(tmp_path)
    preprocess(request_for(tmp_path, "whole"))
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode().strip()}")
    try:
        request = request_for(tmp_path, "small", commit_seconds=100.0)
        with pytest.raises(DataError, match=r"No space left on device.*Free disk space"):
            preprocess(request)
        assert list(folder.iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        preprocess(request)
        assert content(folder) == content(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# outputs that cannot be written ---------------------------------------------------------------------------------


def file_as_folder(folder: Path) -> None:
    (folder / "place").write_text("a file")


def link_in_circles(folder: Path) -> None:
    (folder / "place").symlink_to("place")


@pytest.mark.parametrize("make", [file_as_folder, link_in_circles])
def test_a_folder_that_cannot_be_made(make, tmp_path: Path):
    write_corpus(tmp_path)
    make(tmp_path)
    for prefix in ("place", "place/below"):
        with pytest.raises(DataError, match=r"the folder .*place.* of --output-prefix cannot be made"):
            preprocess(request_for(tmp_path, prefix))


def test_a_name_that_is_too_long(tmp_path: Path):
    write_corpus(tmp_path)
    request = dataclasses.replace(request_for(tmp_path, "."), output_prefix=str(tmp_path / ("x" * 240)))
    with pytest.raises(DataError, match=r"cannot be written.*File name too long"):
        preprocess(request)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path: Path):
    write_corpus(tmp_path)
    (tmp_path / "place").mkdir(mode=0o555)
    with pytest.raises(DataError, match=r"cannot be written.*Permission denied"):
        preprocess(request_for(tmp_path, "place"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
def test_a_read_only_file_system(tmp_path: Path):
    write_corpus(tmp_path)
    (tmp_path / "place").mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path / "place")], capture_output=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.decode().strip()}")
    try:
        with pytest.raises(DataError, match=r"cannot be written.*Read-only file system.*mounted read-only"):
            preprocess(request_for(tmp_path, "place"))
    finally:
        subprocess.run(["umount", str(tmp_path / "place")], check=True)


@pytest.mark.parametrize("name", sorted({*PUBLISHED, QUARANTINE}))
def test_an_output_that_exists(name: str, tmp_path: Path):
    write_corpus(tmp_path)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / name).write_bytes(b"old")
    with pytest.raises(DataError, match=f"{name} exists already.*--overwrite"):
        preprocess(request_for(tmp_path, "place"))
    assert (tmp_path / "place" / name).read_bytes() == b"old"
    assert len(list((tmp_path / "place").iterdir())) == 1
    preprocess(request_for(tmp_path, "place", overwrite=True))
    assert set(content(tmp_path / "place")) == {*PUBLISHED, QUARANTINE}


@pytest.mark.parametrize("name", sorted({*PUBLISHED, QUARANTINE, "out.journal"}))
@pytest.mark.parametrize("ending", ["", ".partial"])
def test_a_folder_under_the_name_of_an_output(name: str, ending: str, tmp_path: Path):
    write_corpus(tmp_path)
    (tmp_path / "place" / f"{name}{ending}").mkdir(parents=True)
    (tmp_path / "place" / f"{name}{ending}" / "inside").write_bytes(b"old")
    with pytest.raises(DataError, match="out"):
        preprocess(request_for(tmp_path, "place", overwrite=True))
    assert [path.name for path in (tmp_path / "place").iterdir()] == [f"{name}{ending}"]
    assert (tmp_path / "place" / f"{name}{ending}" / "inside").read_bytes() == b"old"
