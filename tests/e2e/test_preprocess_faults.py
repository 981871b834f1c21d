"""Preprocessing as users start it: bad records do not hang it, killed workers and full disks change no byte of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from megatron_ext.data.preprocessing.ordered_pool import ITEMS_AHEAD
from megatron_ext.data.store.indexed import IndexedDataset

pytestmark = pytest.mark.e2e

WORKERS = 2
SECONDS = 60  # a run takes half a second; elsewhere these records hang it for ever


def command(repo_root: Path, source: str | Path, prefix: Path, *more: str) -> list[str]:
    tool = str(repo_root / "tools" / "preprocess_data.py")
    flags = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--append-eod", "--workers", str(WORKERS)]
    return [sys.executable, tool, "--input", str(source), "--output-prefix", str(prefix), *flags, *more]


def run(words: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, **settings)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one paragraph of a run that was refused."""
    assert done.returncode == 1, done
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.endswith(errors[0] + "\n"), done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return errors[0]


# one bad record -------------------------------------------------------------------------------------------------

HANGS_ELSEWHERE = {
    "broken JSON": b'{"text": "1 2',
    "blank line": b"",
    "missing key": b'{"content": "1 2"}',
    "lone surrogate": rb'{"text": "\ud800"}',
    "invalid UTF-8": b'{"text": "\xff\xfe"}',
}


@pytest.mark.parametrize("reason", HANGS_ELSEWHERE)
def test_one_bad_record_does_not_hang(reason: str, tmp_path: Path, repo_root: Path):
    line = HANGS_ELSEWHERE[reason]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join([b'{"text": "1"}', line, b'{"text": "2"}']) + b"\n")
    done = run(command(repo_root, source, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert [row.tolist() for row in IndexedDataset(tmp_path / "out_text_document")] == [[1, 100], [2, 100]]
    (listed,) = map(json.loads, (tmp_path / "out.quarantine.jsonl").read_text().splitlines())
    assert (listed["file"], listed["line"], listed["reason"]) == (str(source), 2, reason)

    source.write_bytes(line + b"\n")
    error = error_of(run(command(repo_root, source, tmp_path / "alone")))
    assert "no document was found in 1 records. 1 were quarantined" in error
    assert names(tmp_path) & {"alone.quarantine.jsonl", "alone_text_document.idx"} == {"alone.quarantine.jsonl"}


def test_standard_input_that_is_bad_does_not_hang(tmp_path: Path, repo_root: Path):
    lines = b"\n".join([*HANGS_ELSEWHERE.values(), b'{"text": "1"}'])
    with subprocess.Popen(
        command(repo_root, "-", tmp_path / "out"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        out, err = process.communicate(lines, timeout=SECONDS)
    assert process.returncode == 0, err
    assert b"standard input" not in err
    assert len((tmp_path / "out.quarantine.jsonl").read_bytes().splitlines()) == 5, out


# killed workers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 100 blocks, each of which takes some milliseconds."""
    dice = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("corpus") / "in.jsonl"
    padding = "x" * 20_000
    with path.open("w") as stream:
        for index in range(2500):
            text = " ".join(map(str, dice.integers(0, 100, 400)))
            stream.write(json.dumps({"text": text, "padding": padding}) + "\n" if index % 50 else "{\n")
    return path


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """The prefix of what an undisturbed run makes of the corpus."""
    prefix = tmp_path_factory.mktemp("whole") / "out"
    assert run(command(repo_root, corpus, prefix)).returncode == 0
    return prefix


def num_commits(journal: Path) -> int:
    try:
        return journal.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


def kill(worker: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.kill()


def results(prefix: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(prefix.parent.glob(f"{prefix.name}[._]*")):
        yield path.name, path.read_bytes()


def test_killed_workers_change_no_byte(corpus: Path, whole: Path, tmp_path: Path, repo_root: Path):
    """After each kill all blocks then on their way are waited for, so that none is hit three times: that ends a run."""
    prefix, dice = tmp_path / "out", random.Random(0)
    words = command(repo_root, corpus, prefix, "--commit-seconds", "0")
    killed: set[int] = set()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        known = 0
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            commits = num_commits(tmp_path / "out.journal")
            workers = workers_of(process)
            if commits <= known or not workers:
                time.sleep(0.002)
                continue
            victim = dice.choice(workers)
            killed.add(victim.pid)
            kill(victim)
            known = num_commits(tmp_path / "out.journal") + ITEMS_AHEAD * WORKERS
        process.kill()  # harmless when it has ended
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert len(killed) >= 5, err
    assert err.count("was ended by SIGKILL") >= 5, err
    assert list(results(prefix)) == list(results(whole))


def test_a_record_that_kills_every_worker_ends_the_run(corpus: Path, tmp_path: Path, repo_root: Path):
    """As one that needs more memory than there is: the user is told of it, and nothing hangs or is half published."""
    words = command(repo_root, corpus, tmp_path / "out")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            for worker in workers_of(process):
                kill(worker)
        process.kill()
        out, err = process.communicate()
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    assert "3 worker processes died, one after the other" in error_of(done)
    assert names(tmp_path) == set()


# a full disk ----------------------------------------------------------------------------------------------------


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("commit_seconds", ["0", "100"])
def test_a_full_disk_is_one_paragraph_and_resumes(
    commit_seconds: str, corpus: Path, whole: Path, tmp_path: Path, repo_root: Path
):
    size = Path(f"{whole}_text_document.bin").stat().st_size // 2
    words = command(repo_root, corpus, tmp_path / "out", "--commit-seconds", commit_seconds, "--workers", "1")
    error = error_of(run(words, preexec_fn=lambda: limited(size)))
    assert "out_text_document.bin" in error
    assert "File too large" in error
    assert not names(tmp_path) & names(whole.parent)
    if commit_seconds == "0":
        words.append("--resume")
    else:
        assert names(tmp_path) == set()
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert ("resuming after" in done.stdout) == (commit_seconds == "0")
    assert list(results(tmp_path / "out")) == list(results(whole))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_two_workers_on_a_small_file_system(corpus: Path, tmp_path: Path, repo_root: Path):
    (tmp_path / "small").mkdir()
    mount = run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path / "small")])
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    try:
        error = error_of(run(command(repo_root, corpus, tmp_path / "small" / "out")))
        assert "No space left on device" in error
        assert names(tmp_path / "small") == set()
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)
