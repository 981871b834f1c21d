"""The command has Megatron-LM's flags, one-paragraph errors, and never leaves half a dataset (law L7)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.sources.inputs import FORMATS
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import verify_checksums
from megatron_ext.errors import ConfigError
from megatron_ext.tokenizer import TOKENIZER_TYPES
from tests.unit.data.small import write_jsonl
from tools import preprocess_data

FLAGS = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--append-eod"]


def command(repo_root: Path, source: Path, prefix: Path, *more: str) -> list[str]:
    tool = str(repo_root / "tools" / "preprocess_data.py")
    return [sys.executable, tool, "--input", str(source), "--output-prefix", str(prefix), *FLAGS, *more]


def environment(repo_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo_root)}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".partial")}


def content(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}_text_document.*")}


def num_lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers = random.Random(0)
    texts = [" ".join(str(numbers.randrange(100)) for _ in range(200)) for _ in range(8000)]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "in.jsonl", texts)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_killed_again_and_again_and_resumed_gives_the_bytes_of_one_run(workers, corpus, tmp_path, repo_root):
    prefix, complete = tmp_path / "out", tmp_path / "complete" / "out"
    words = [*command(repo_root, corpus, complete, "--workers", workers)]
    subprocess.run(words, env=environment(repo_root), check=True, capture_output=True)
    journal, known_lines = tmp_path / "out.journal", 1
    moments, killed_midway = random.Random(int(workers)), 0
    words = command(repo_root, corpus, prefix, "--workers", workers, "--resume", "--commit-seconds", "0")
    for _ in range(4):
        process = subprocess.Popen(
            words, env=environment(repo_root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and num_lines(journal) <= known_lines:  # until it did something of its own
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.05))
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive, "workers outlive the run"
        if journal.exists():  # else it was done before the signal came
            killed_midway += 1
            known_lines = num_lines(journal)
            assert not (tmp_path / "out_text_document.idx").exists()
    assert killed_midway, "no run was killed in the middle: the corpus is too small for this machine"
    last = subprocess.run(words, env=environment(repo_root), check=True, capture_output=True, text=True)
    assert "resuming after" in last.stdout or "complete already" in last.stdout
    assert content(prefix) == content(complete)
    verify_checksums(f"{prefix}_text_document")
    assert names(tmp_path) == {"complete", *content(prefix)}
    assert not list(tmp_path.glob("*.partial"))


def test_unfinished_work_is_not_lost_unasked(corpus, tmp_path, repo_root):
    words = command(repo_root, corpus, tmp_path / "out", "--workers", "2", "--commit-seconds", "0")
    process = subprocess.Popen(words, env=environment(repo_root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and num_lines(tmp_path / "out.journal") < 2:
        time.sleep(0.005)
    process.kill()
    process.wait()
    again = subprocess.run(words, env=environment(repo_root), capture_output=True, text=True)
    assert again.returncode == 1
    assert "unfinished work" in again.stderr
    assert "--resume" in again.stderr
    other = subprocess.run(
        [*words, "--resume", "--json-keys", "other"], env=environment(repo_root), capture_output=True, text=True
    )
    assert other.returncode == 1
    assert "another run" in other.stderr


def test_bad_lines_end_in_the_quarantine_and_the_status_is_zero(tmp_path, repo_root):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "1 2"}\n{"text": "\\ud800"}\n\n{"text": "\xff"}\n{"text": ""}\n{"text": "3"}')
    result = subprocess.run(
        command(repo_root, source, tmp_path / "out"),
        env=environment(repo_root),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"out_text_document +6 +2 +3 +1 +5 ", result.stdout)
    listed = [json.loads(line)["reason"] for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert listed == ["lone surrogate", "blank line", "invalid UTF-8"]
    assert [row.tolist() for row in IndexedDataset(tmp_path / "out_text_document")] == [[1, 2, 100], [3, 100]]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stopping_at_a_bad_line_is_one_paragraph_and_status_one(workers, tmp_path, repo_root):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "1"}\n{\n')
    result = subprocess.run(
        command(repo_root, source, tmp_path / "out", "--on-error", "stop", "--workers", workers),
        env=environment(repo_root), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 1
    assert re.fullmatch(r"error: line 2 of .*in\.jsonl is bad: broken JSON .*\n", result.stderr)
    assert names(tmp_path) == {"in.jsonl"}


def test_no_torch_is_imported_by_the_work_itself(tmp_path, repo_root):
    source = write_jsonl(tmp_path / "in.jsonl", ["1 2"])
    words = command(repo_root, source, tmp_path / "out")[2:]
    code = (
        "import sys; from tools import preprocess_data; preprocess_data.main(sys.argv[1:]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'megatron.core', 'transformers')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(repo_root), cwd=repo_root, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_choices_of_the_flags_are_those_that_exist():
    assert preprocess_data._TYPES == TOKENIZER_TYPES
    assert preprocess_data._FORMATS == FORMATS
    assert set(preprocess_data._ROW_FORMATS) == set(ROW_FORMATS)


@pytest.mark.parametrize("flag", sorted(preprocess_data._REFUSED))
def test_flags_without_meaning_are_refused_with_their_reason(flag: str):
    with pytest.raises(ConfigError, match=f"{flag} is not accepted"):
        preprocess_data.make_parser().parse_args([flag, "1"])


def test_megatrons_flags_are_read():
    words = [
        "--input",
        "a",
        "b*",
        "--output-prefix",
        "p",
        "--json-keys",
        "x",
        "y",
        "--tokenizer-type",
        "Llama2Tokenizer",
    ]
    words += ["--tokenizer-model", "m", "--append-eod", "--workers", "4", "--log-interval", "10"]
    found = vars(preprocess_data.make_parser().parse_args(words))
    assert found["input"] == ["a", "b*"]
    assert found["json_keys"] == ["x", "y"]
    assert (found["tokenizer_model"], found["append_eod"], found["workers"], found["log_interval"]) == (
        "m",
        True,
        4,
        10,
    )
