"""A run on a Ray cluster of two workers gives the bytes of a local run, whichever of them dies in the middle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.preprocessing.ray_executor import preprocess_on_ray
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.shards import Shard
from megatron_ext.errors import DataError

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # given here, so that none is written into the home folder
ray = pytest.importorskip("ray", reason="ray is not installed (requirements/ray.txt)")
pytestmark = pytest.mark.dist

SECONDS = 60
OBJECT_STORE_BYTES = 80 << 20  # the least it takes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each; this process is connected to them."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(**{name: node[name] for name in ("num_cpus", "object_store_memory")})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 40 blocks that is cut between shards, and one that is not; every fortieth record is bad."""
    folder = tmp_path_factory.mktemp("corpus")
    dice = np.random.default_rng(0)
    padding = "x" * 20_000
    for name, count in (("a.jsonl", 1000), ("b.json", 100)):
        records = [{"text": " ".join(map(str, dice.integers(0, 99, 300))), "padding": padding} for _ in range(count)]
        for record in records[::40]:
            record["text"] = None
        if name == "a.jsonl":
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        else:
            (folder / name).write_text(json.dumps(records))
    return folder


def request_for(corpus: Path, prefix: Path, **values: object) -> PreprocessRequest:
    rows = RowSettings(append_eod=True)
    defaults = {"vocab_size": 99, "rows": rows, "commit_seconds": 0.0}
    return PreprocessRequest((str(corpus),), str(prefix), "NullTokenizer", **{**defaults, **values})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a local run makes of the corpus."""
    folder = tmp_path_factory.mktemp("whole")
    preprocess(request_for(corpus, folder / "out", commit_seconds=100.0))
    assert len(content(folder)) == 4
    return content(folder)


def working_on(journal: Path) -> psutil.Process | None:
    """The process that writes a journal."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(file.path == str(journal) for file in process.open_files()):
                return process
    return None


class Meanwhile(threading.Thread):
    """Does something once, in the middle of a shard's work."""

    def __init__(self, folder: Path, act: Callable[[psutil.Process], object]) -> None:
        super().__init__()
        self.acted = False
        self._folder, self._act = folder, act

    def run(self) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.acted and time.monotonic() < deadline:
            for journal in self._folder.glob("*.journal"):
                if self._has_work(journal) and (process := working_on(journal)):
                    self._act(process)
                    self.acted = True
                    return
            time.sleep(0.002)

    def _has_work(self, journal: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return journal.read_bytes().count(b"\n") >= 2
        return False


@pytest.mark.timeout(120)
def test_a_killed_worker_changes_no_byte(cluster: Any, corpus: Path, whole: dict[str, bytes], tmp_path: Path, capsys):
    killer = Meanwhile(tmp_path, psutil.Process.kill)
    killer.start()
    preprocess_on_ray(request_for(corpus, tmp_path / "out"), num_shards=5)
    killer.join()
    assert killer.acted, "every shard was finished before a worker could be killed"
    assert content(tmp_path) == whole
    assert "5 of 5 shards are done" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_a_failing_shard_is_one_paragraph_and_resumes(cluster: Any, corpus: Path, whole: dict[str, bytes], tmp_path):
    request = request_for(corpus, tmp_path / "out")
    stopping = dataclasses.replace(request, stop_on_error=True, output_prefix=str(tmp_path / "stopped" / "out"))
    with pytest.raises(
        DataError, match=r"^shard [01] of 2 failed: line \d+ of .*a\.jsonl .*is bad: wrong type"
    ) as caught:
        preprocess_on_ray(stopping, num_shards=2)
    journals = list((tmp_path / "stopped").glob("*.journal"))
    assert not any(map(working_on, journals)), "a shard is still being written after the run has failed"
    shutil.rmtree(tmp_path / "stopped")
    assert "\n" not in str(caught.value)
    preprocess(dataclasses.replace(request, shard=Shard(1, 3)))
    with pytest.raises(DataError, match="is part of an earlier run"):
        preprocess_on_ray(request, num_shards=3)
    with pytest.raises(DataError, match=r"is not one of 4 shards.*--num-shards"):
        preprocess_on_ray(dataclasses.replace(request, resume=True), num_shards=4)
    preprocess_on_ray(dataclasses.replace(request, resume=True), num_shards=3)
    assert content(tmp_path) == whole
    with pytest.raises(DataError, match="exists already"):
        preprocess_on_ray(request, num_shards=3)
    assert len(preprocess_on_ray(dataclasses.replace(request, resume=True), num_shards=3)) == 1


def test_what_would_wait_for_ever_is_refused(cluster: Any, corpus: Path, tmp_path: Path):
    with pytest.raises(DataError, match="--workers 2 finds no machine: the largest of the Ray cluster has 1 CPUs"):
        preprocess_on_ray(request_for(corpus, tmp_path / "out", workers=2), num_shards=2)


@pytest.mark.timeout(120)
def test_a_lost_machine_changes_no_byte(cluster: Any, corpus: Path, whole: dict[str, bytes], tmp_path: Path):
    """The last test of the cluster, which has one node less afterwards."""
    lost = next(node for node in cluster.list_all_nodes() if not node.head)

    def lose(_: psutil.Process) -> None:
        cluster.remove_node(lost, allow_graceful=False)

    remover = Meanwhile(tmp_path, lose)
    remover.start()
    preprocess_on_ray(request_for(corpus, tmp_path / "out"), num_shards=4)
    remover.join()
    assert remover.acted
    assert content(tmp_path) == whole


@pytest.mark.timeout(120)
def test_the_command_starts_a_cluster_of_its_own(
    corpus: Path, whole: dict[str, bytes], tmp_path: Path, repo_root: Path
):
    tool = str(repo_root / "tools" / "preprocess_data.py")
    words = [sys.executable, tool, "--input", str(corpus), "--output-prefix", "out", "--append-eod"]
    words += ["--tokenizer-type", "NullTokenizer", "--vocab-size", "99", "--executor", "ray", "--num-shards", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 shards are done" in done.stdout
    assert content(tmp_path) == whole
