"""The command packs, tells what became of every token, and answers mistakes with one paragraph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.data.packing.settings import LONG_DOCUMENTS, METHODS
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import ConfigError
from tests.unit.data.packing.finished import contents, finished
from tools import pack_dataset


def command(repo_root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    tool = str(repo_root / "tools" / "pack_dataset.py")
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    return subprocess.run([sys.executable, tool, *words], env=environment, capture_output=True, text=True, timeout=60)


def test_a_run_from_the_command_line(tmp_path: Path, repo_root: Path):
    source = finished(tmp_path / "a", [[5, 6, 7], [8, 9, 10, 11]], append_eod=True)
    words = ["--method", "stream", "--input", source, "--output-prefix", str(tmp_path / "out"), "--seq-length", "4"]
    result = command(repo_root, *words)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2 blocks of at most 4 tokens" in result.stdout
    assert contents(tmp_path / "out") == ([[5, 6, 7, 8], [9, 10, 11]], None)
    result = command(repo_root, *words)
    assert result.returncode == 1
    assert result.stderr.startswith("error: the output ")
    assert "Traceback" not in result.stderr


def test_weights_from_a_file(tmp_path: Path):
    first, second = finished(tmp_path / "a", [[5, 6]]), finished(tmp_path / "b", [[7, 8]])
    (tmp_path / "w.json").write_text(json.dumps({first: 2.0, second: 0}))
    words = ["--method", "first-fit", "--input", first, second, "--weights-file", str(tmp_path / "w.json")]
    pack_dataset.main([*words, "--output-prefix", str(tmp_path / "out"), "--seq-length", "16", "--pad-id", "3"])
    assert contents(tmp_path / "out")[0] == [[3] * 12 + [5, 6, 5, 6]]


def test_all_flags_reach_the_settings(tmp_path: Path):
    source = finished(tmp_path / "a", [[1] * 40] * 2)
    output = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--overwrite"]
    pack_dataset.main(["--method", "overlap", "--seq-length", "32", "--bos-id", "1", "--reset-every", "1", *output])
    assert IndexedDataset(tmp_path / "out").num_documents == 2
    pack_dataset.main(
        ["--method", "first-fit", "--seq-length", "64", "--pad-id", "3", "--weights", "2.5", "--pack-shards", "2",
         "--num-samples", "4", "--seed", "9", *output]
    )  # fmt: skip
    manifest = IndexedDataset(tmp_path / "out").manifest
    assert manifest is not None
    assert (manifest.documents, manifest.rows["weights"], manifest.rows["pack_shards"]) == (4, [2.5], 2)
    assert (manifest.rows["seed"], manifest.rows["num_samples"], manifest.rows["pad_id"]) == (9, 4, 3)
    pack_dataset.main(["--method", "buckets", "--bucket-sizes", "8", "16", "--long-documents", "cut", *output])
    assert IndexedDataset(tmp_path / "out_16").num_documents == 4
    assert IndexedDataset(tmp_path / "out_8").num_documents == 2
    pack_dataset.main(["--method", "stream", "--seq-length", "32", "--drop-last", *output])
    assert IndexedDataset(tmp_path / "out").num_documents == 2


def test_a_flag_of_another_method_is_refused_not_ignored(tmp_path: Path):
    with pytest.raises(ConfigError, match="--drop-last is not accepted with --method overlap"):
        pack_dataset.main(
            ["--method", "overlap", "--input", "a", "--output-prefix", "o", "--seq-length", "32", "--bos-id", "1",
             "--drop-last"]
        )  # fmt: skip


def test_the_choices_are_those_that_exist():
    assert (pack_dataset._METHODS, pack_dataset._LONG_DOCUMENTS) == (METHODS, LONG_DOCUMENTS)
