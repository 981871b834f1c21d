"""The manifest: every change of every byte is seen and named, and no name in it leads out of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.checkpoint.manifest import (
    MANIFEST,
    describe_file,
    faults_of_files,
    files_of,
    is_plain_name,
    read_manifest,
    sha256,
    write_manifest,
)
from megatron_ext.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint of plain files."""
    folder = tmp_path / "iter_0000001"
    (folder / "tokenizer").mkdir(parents=True)
    contents = {"a.distcp": b"a" * 5000, "state.json": b"{}\n", "empty": b"", "tokenizer/t.model": b"\x00\x01" * 300}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, {name: describe_file(folder / name) for name in files_of(folder)})
    return folder


def faults(folder: Path) -> list[str]:
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    extra = [f"{name} is not in the manifest" for name in files_of(folder) if name not in files]
    return faults_of_files(folder, files, sorted(files)) + extra


def test_a_whole_folder_has_no_faults(folder: Path):
    assert faults(folder) == []
    assert list(read_manifest(folder)) == ["a.distcp", "empty", "state.json", "tokenizer/t.model"]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_the_checksum_is_sha256(content: bytes):
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "file"
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
        assert describe_file(path) == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_one_flipped_bit_anywhere_in_the_manifest_is_seen(folder: Path):
    path, chance = folder / MANIFEST, random.Random(0)
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        assert faults(folder), f"byte {place}: {content[place : place + 1]} -> {bytes(changed[place : place + 1])}"


def test_a_shortened_manifest_is_seen(folder: Path):
    path = folder / MANIFEST
    content = path.read_bytes()
    for length in range(len(content) - 1):
        path.write_bytes(content[:length])
        assert faults(folder), length


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": 2, "files": {}}', "has format 2.*reads format 1"),
        ('{"format": "1", "files": {}}', "has format '1'"),
        ('{"files": {}}', "not a manifest"),
        ("[]", "not a manifest"),
        ('{"format": 1, "files": []}', "damaged"),
        ('{"format": 1, "files": {"a": 3}}', "damaged"),
        ('{"format": 1, "files": {"a": {"bytes": "3", "sha256": ""}}}', "not a size and a checksum"),
        ('{"format": 1, "files": {"a": {"bytes": 3}}}', "not a size and a checksum"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_something_else_than_a_manifest_is_refused(folder: Path, content: str, message: str):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(folder)


def test_no_manifest_means_not_finished(folder: Path):
    (folder / MANIFEST).unlink()
    for place in (folder, folder / "missing", folder / "empty"):
        with pytest.raises(CheckpointError, match="not a finished checkpoint"):
            read_manifest(place)


def test_a_manifest_that_cannot_be_read(folder: Path):
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    with pytest.raises(CheckpointError, match=f"{MANIFEST} cannot be read"):
        read_manifest(folder)


OUTSIDE = ["..", "../a", "a/../../b", "/etc/passwd", "a//b", "./a", "", "a/", "/", "a\0b", "tokenizer/../../a"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_the_folder_is_refused(folder: Path, name: str):
    assert not is_plain_name(name)
    content = {"format": 1, "files": {name: {"bytes": 1, "sha256": "0"}}}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="points outside"):
        read_manifest(folder)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_plain_name_never_leaves_the_folder(name: str):
    if is_plain_name(name):
        inside = os.path.normpath(os.path.join("/root/folder", name))
        assert inside.startswith("/root/folder/")
        assert inside == "/root/folder/" + name


def test_damage_of_every_kind_to_every_file_is_seen_and_named(folder: Path):
    chance = random.Random(1)
    for name in read_manifest(folder):
        path = folder / name
        content = path.read_bytes()
        damages = {"missing": None, "longer": content + b"\0"}
        if content:
            flipped = bytearray(content)
            flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            damages |= {"flipped": bytes(flipped), "shorter": content[:-1], "emptied": b""}
        for kind, damage in damages.items():
            path.unlink(missing_ok=True)
            if damage is not None:
                path.write_bytes(damage)
            [fault] = faults(folder)
            assert fault.startswith(name), (kind, fault)
        path.write_bytes(content)
        assert faults(folder) == []


def test_two_files_that_have_changed_places_are_seen(folder: Path):
    (folder / "a.distcp").rename(folder / "spare")
    (folder / "tokenizer/t.model").rename(folder / "a.distcp")
    (folder / "spare").rename(folder / "tokenizer/t.model")
    assert [fault.split()[0] for fault in faults(folder)] == ["a.distcp", "tokenizer/t.model"]


@pytest.mark.parametrize("name", ["added", "tokenizer/added", ".hidden"])
def test_an_added_file_is_seen(folder: Path, name: str):
    (folder / name).write_bytes(b"")
    assert faults(folder) == [f"{name} is not in the manifest"]


@pytest.mark.parametrize("name", ["a.distcp", "tokenizer"])
def test_a_link_out_of_the_folder_is_no_file_of_it(folder: Path, name: str):
    elsewhere = folder.parent / "elsewhere"
    shutil.move(folder / name, elsewhere)
    (folder / name).symlink_to(elsewhere)
    assert any(fault.endswith("is a link") for fault in faults(folder))


def test_a_file_that_cannot_be_read_is_a_fault_not_a_crash(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("megatron_ext.checkpoint.manifest.sha256", refuse)
    files = read_manifest(folder)
    assert faults_of_files(folder, files, ["empty"]) == ["empty cannot be read (Input/output error)"]
