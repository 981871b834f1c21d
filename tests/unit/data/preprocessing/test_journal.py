"""Whatever kills the run, and wherever the file is cut, the journal tells of the last entry that was whole on disk."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.data.preprocessing.journal import FORMAT_VERSION, Journal
from megatron_ext.errors import DataError

HEADER = {"inputs": [["corpus, 文.jsonl", 1234, 1700000000.25]], "fingerprint": "abc"}
ENTRIES: list[dict[str, Any]] = [
    {"position": [0, 17, 3], "written": 3},
    {"position": [0, 34, 6], "written": 6, "note": "line\nbreak"},
    {},
    {"position": [1, 0, 0], "written": 2**53 + 1, "rate": 0.1, "none": None, "yes": True},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.journal"


def write(path: Path, entries: list[dict[str, Any]] = ENTRIES) -> list[int]:
    """A journal of these entries; its size after the header and after each entry."""
    journal = Journal.begin(path, HEADER)
    sizes = [path.stat().st_size]
    for entry in entries:
        journal.append(entry)
        sizes.append(path.stat().st_size)
    journal.close()
    return sizes


def reopened(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    journal, header, last = Journal.reopen(path)
    journal.close()
    return header, last


def overwrite(path: Path, content: bytes) -> None:
    """Path.write_bytes, which empties the file first, waits for the disk on some file systems."""
    with path.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


@pytest.mark.parametrize("count", range(len(ENTRIES) + 1))
def test_what_was_written_is_read(path: Path, count: int):
    write(path, ENTRIES[:count])
    assert reopened(path) == (HEADER, ENTRIES[count - 1] if count else None)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_every_cut_gives_the_last_whole_entry_before_it_and_the_journal_goes_on_from_there(path: Path):
    sizes = write(path)
    content = path.read_bytes()
    for cut in range(sizes[0], len(content) + 1):
        overwrite(path, content[:cut])
        whole = max(index for index, size in enumerate(sizes) if size <= cut)
        journal, header, last = Journal.reopen(path)
        assert (header, last) == (HEADER, ENTRIES[whole - 1] if whole else None)
        assert path.stat().st_size == sizes[whole]
        if cut % 5 == 0:
            journal.append({"after": cut})
        journal.close()
        assert reopened(path)[1] == ({"after": cut} if cut % 5 == 0 else last)


def test_without_its_first_line_it_is_refused(path: Path):
    sizes = write(path)
    content = path.read_bytes()
    for cut in (0, 1, 20, sizes[0] - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"first line.*--overwrite"):
            Journal.reopen(path)


def test_a_changed_byte_is_refused_or_falls_back_to_an_entry_that_was_written(path: Path):
    sizes = write(path)
    content = path.read_bytes()
    refused = 0
    for place in range(len(content)):
        for changed in {content[place] ^ 1, content[place] ^ 32, 255 - content[place], 0, 10} - {content[place]}:
            overwrite(path, content[:place] + bytes([changed]) + content[place + 1 :])
            try:
                found = reopened(path)
            except DataError as error:
                refused += 1
                assert str(path) in str(error)
                continue
            # the line is taken for the last: at the end of the file it is, or one that swallowed the last
            whole = sum(size <= place for size in sizes) - 1
            assert found == (HEADER, ENTRIES[whole - 1] if whole else None)
            assert place >= sizes[-3] - 1
    assert refused > sizes[-3]


def test_lines_lost_doubled_or_moved_are_refused_unless_at_the_end(path: Path):
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (
        lines[:1] + lines[2:],  # lost
        lines[:2] + lines[1:],  # doubled
        [lines[0], lines[2], lines[1], *lines[3:]],  # moved
        lines[1:],
        [*lines, b"\n", b"\n"],
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(DataError, match="not as it was written"):
            Journal.reopen(path)
    path.write_bytes(b"".join(lines + lines[-1:]))
    assert reopened(path) == (HEADER, ENTRIES[-1])


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b"0123456789abcdef {", bytes(range(11, 256))], ids=["zeros", "torn", "noise"]
)
def test_what_a_crash_of_the_machine_leaves_at_the_end_is_dropped(path: Path, tail: bytes):
    write(path)
    path.write_bytes(path.read_bytes() + tail)
    assert reopened(path) == (HEADER, ENTRIES[-1])


def test_a_new_journal_takes_the_place_of_an_old_one(path: Path):
    write(path)
    Journal.begin(path, {"other": 1}).close()
    assert reopened(path) == ({"other": 1}, None)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_call_while_it_begins_there_is_the_old_journal_or_the_new(
    path: Path, old: bool, monkeypatch: pytest.MonkeyPatch
):
    """Each call that reaches the disk is the last, after doing nothing or half of it; then the next run looks."""
    calls = ("pwrite", "fsync", "replace", "ftruncate", "open")
    for name in calls:
        for half in (False, True):
            path.unlink(missing_ok=True)
            if old:
                write(path)
            original = getattr(os, name)

            def dying(*arguments: Any, name: str = name, half: bool = half, original: Any = original) -> None:
                if half and name == "pwrite":
                    original(arguments[0], bytes(arguments[1])[:20], arguments[2])
                elif half:
                    original(*arguments)
                raise Killed

            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(os, name, dying)
                Journal.begin(path, {"new": 1}).close()
            if path.exists():
                assert reopened(path) in ((HEADER, ENTRIES[-1]), ({"new": 1}, None))
            else:
                assert not old
    Journal.begin(path, {"next": 1}).close()
    assert reopened(path) == ({"next": 1}, None)


def test_each_entry_is_on_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.begin(path, HEADER)
    calls: list[str] = []
    for name in ("pwrite", "fsync"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, original=original: (calls.append(name), original(*a))[1])
    journal.append({"a": 1})
    journal.append({"b": 1})
    journal.close()
    assert calls == ["pwrite", "fsync"] * 2


@pytest.mark.parametrize("name", ["pwrite", "fsync"])
def test_a_failed_entry_leaves_the_journal_as_it_was(path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    journal = Journal.begin(path, HEADER)
    journal.append(ENTRIES[0])
    size = path.stat().st_size

    original = os.pwrite

    def full(descriptor: int, *arguments: Any) -> None:
        if name == "pwrite":
            original(descriptor, arguments[0][:100], arguments[1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(DataError, match=r"No space left.*Free disk space"):
            journal.append({"long": "x" * 500})
    assert path.stat().st_size == size
    journal.append(ENTRIES[1])
    journal.close()
    assert reopened(path) == (HEADER, ENTRIES[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1, 2}])
def test_what_is_no_json_is_a_mistake_of_the_caller_and_writes_nothing(path: Path, value: object):
    journal = Journal.begin(path, HEADER)
    with pytest.raises((TypeError, ValueError)):
        journal.append({"value": value})
    journal.append({"good": 1})
    journal.close()
    assert reopened(path) == (HEADER, {"good": 1})


def test_two_runs_cannot_use_it_at_once(path: Path):
    journal = Journal.begin(path, HEADER)
    for second in (lambda: Journal.begin(path, {}), lambda: Journal.reopen(path)):
        with pytest.raises(DataError, match="another run"):
            second()
    journal.append({"still": "mine"})
    journal.close()
    again, header, last = Journal.reopen(path)
    assert (header, last) == (HEADER, {"still": "mine"})
    with pytest.raises(DataError, match="another run"):
        Journal.begin(path, {})
    again.remove()
    assert not list(path.parent.iterdir())
    again.close()


def test_a_missing_or_foreign_file_is_named(path: Path):
    with pytest.raises(DataError, match=r"no journal .*x\.journal"):
        Journal.reopen(path)
    with pytest.raises(DataError, match="nowhere"):
        Journal.begin(path.parent / "nowhere" / "x.journal", {})
    path.write_text('{"text": "a corpus"}\n{"text": "another line"}\n')
    with pytest.raises(DataError, match="not as it was written"):
        Journal.reopen(path)


def test_another_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr("megatron_ext.data.preprocessing.journal.FORMAT_VERSION", FORMAT_VERSION + 1)
        write(path)
    with pytest.raises(DataError, match=f"version {FORMAT_VERSION + 1}; this program knows"):
        Journal.reopen(path)


def test_no_file_stays_open(path: Path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        write(path)
        reopened(path)
        path.write_bytes(random.Random(1).randbytes(50))
        with pytest.raises(DataError):
            Journal.reopen(path)
    assert len(os.listdir("/proc/self/fd")) == before
