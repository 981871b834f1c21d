"""What a step sees, told without training, is what a real run read: any ranks, micro-batches and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ext.data.datasets import DatasetRequest, build_datasets
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import ConfigError, MegatronExtError
from tests.distributed.tiny import COMMON, MODELS, write_dataset
from tests.unit.data.described import Record, write_run
from tests.unit.data.small import TOKENIZER, data_config, make_dataset
from tools import explain_batch

NULL = "--tokenizer-type NullTokenizer --vocab-size 1000"


def explained(capsys, words: str) -> str:
    capsys.readouterr()
    explain_batch.main(words.split())
    return capsys.readouterr().out


def ids_of(capsys, words: str) -> list[int]:
    return json.loads(explained(capsys, f"{words} --json").splitlines()[-1])["sample_ids"]


@pytest.mark.parametrize("order", ["permuted", "sequential", "megatron"])
def test_steps_are_the_global_batches_of_the_view(order: str, tmp_path: Path, capsys):
    prefix = make_dataset(tmp_path)
    config = data_config(data_path=[prefix], dataset_order=order, split="9,1")
    view = build_datasets(DatasetRequest(config, TOKENIZER, 8, (40, 0, 0), 7)).train
    words = f"--data-path {prefix} --split 9,1 --seq-length 8 --dataset-order {order} --seed 7 {NULL} --train-iters 10"
    for step in (1, 2, 10):
        found = ids_of(capsys, f"{words} --global-batch-size 4 --step {step}")
        assert found == view.sample_ids(4 * (step - 1), 4).tolist()
    ramp = [ids_of(capsys, f"{words} --global-batch-size 4 --rampup-batch-size 2 2 6 --step {k}") for k in (1, 3, 4)]
    assert [len(ids) for ids in ramp] == [2, 2, 4]
    assert ramp[2] == view.sample_ids(6, 4).tolist()


def test_documents_are_shown_with_their_file_and_text(tmp_path: Path, capsys):
    prefix = write_run(tmp_path / "x", [Record("a", [3, 4, 5]), Record("a", [6, 7, 8])], with_mask=False)
    words = f"--data-path {prefix} --split 1 --seq-length 4 --dataset-order sequential --global-batch-size 1 --step 1"
    out = explained(capsys, words)
    assert "step 1: samples 0 to 0" in out and "--- sample 0 at place 0" in out
    path = IndexedDataset(prefix).manifest.inputs[0].path
    assert f"document 0, tokens 0 to 3 of 4, from {path}\n  3 4 5<eod>\n" in out
    assert "document 1, tokens 0 to 0 of 4" in out
    assert "  3 4 ...\n" in explained(capsys, f"{words} --max-tokens 2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--step 0 --global-batch-size 2", "no step 0"),
        ("--step 5 --global-batch-size 2 --train-iters 4", "no step 5.*end at 4"),
        ("--step 1", "size of a batch"),
        ("--step 1 --global-batch-size 2 --dataset-order megatron", "--train-iters"),
        ("--step 1 --global-batch-size 2 --dataset-order absent", "absent"),
        ("--step 1 --run-folder absent --seed 3", "beside --run-folder"),
        ("--global-batch-size 2", "--step"),
    ],
)
def test_what_cannot_be_told_is_refused(words: str, message: str, tmp_path: Path):
    data = "" if "--run-folder" in words else f"--data-path {make_dataset(tmp_path)} --seq-length 8 {NULL} "
    with pytest.raises(MegatronExtError, match=message):
        explain_batch.main((data + words).split())


def test_a_folder_without_settings_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no readable run_config"):
        explain_batch.main(["--step", "1", "--run-folder", str(tmp_path)])
    (tmp_path / "run_config.yaml").write_text("- 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="does not hold"):
        explain_batch.main(["--step", "1", "--run-folder", str(tmp_path)])


@pytest.mark.dist
@pytest.mark.parametrize(("processes", "micro_batch", "workers"), [(1, 4, 0), (2, 1, 2)])
def test_a_real_run_reads_what_is_told(processes: int, micro_batch: int, workers: int, tmp_path: Path, capsys):
    write_dataset(tmp_path / "data")
    flags = f"--data-path {tmp_path / 'data'} --eval-iters 0 --global-batch-size 4 --num-workers {workers}"
    words = f"{COMMON} {MODELS['rope']} {flags} --micro-batch-size {micro_batch} --save {tmp_path / 'run'}"
    words += " --train-iters 3 --lr-warmup-iters 0"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launcher, "pretrain_gpt.py", *words.split(), "--log-sample-ids", str(tmp_path / "ids.jsonl")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [record["iteration"] for record in records] == [1, 2, 3]
    for record in records:
        step = f"--step {record['iteration']}"
        assert len(record["sample_ids"]) == 4
        assert ids_of(capsys, f"{step} --run-folder {tmp_path / 'run'}") == record["sample_ids"]
        assert ids_of(capsys, f"{step} {words}") == record["sample_ids"]
