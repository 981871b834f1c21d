"""What a step sees, told without training, is what a real run read: any ranks, micro-batches and workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.datasets import DatasetRequest, build_datasets
from megatron_ext.data.joined_view import JoinedView
from megatron_ext.data.order_file import write_order_file
from megatron_ext.data.split import span_of, split_bounds
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.views import WindowView
from megatron_ext.errors import ConfigError, MegatronExtError
from megatron_ext.training.metrics import MetricsFile
from megatron_ext.training.source_losses import Decision
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


def shuffled_order(prefixes: list[str], path: Path, seq_length: int, split: str) -> Path:
    """Write an order file over the training parts of several datasets."""
    bounds = split_bounds(split)[0]
    stores = [IndexedDataset(prefix) for prefix in prefixes]
    view = JoinedView([WindowView(store, span_of(bounds, store.num_sequences), seq_length) for store in stores])
    write_order_file(path, np.random.default_rng(0).permutation(len(view)), view.target, {})
    return path


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


def test_an_order_over_several_datasets_tells_the_dataset_of_every_sample(tmp_path: Path, capsys):
    prefixes = [make_dataset(tmp_path, name, seed) for seed, name in enumerate(("first", "second"))]
    path = shuffled_order(prefixes, tmp_path / "x.order", seq_length=8, split="9,1")
    words = f"--data-path {' '.join(prefixes)} --split 9,1 --seq-length 8 --dataset-order {path} {NULL}"
    config = data_config(data_path=prefixes, dataset_order=str(path), split="9,1")
    view = build_datasets(DatasetRequest(config, TOKENIZER, 8, (40, 0, 0), 7)).train
    wanted = view.sample_ids(8, 8)
    assert ids_of(capsys, f"{words} --global-batch-size 8 --step 2") == wanted.tolist()
    shown = explained(capsys, f"{words} --global-batch-size 8 --step 2").split("--- sample ")[1:]
    assert {int(source) for source in view.sources_of(wanted)} == {0, 1}
    for text, sample, source in zip(shown, wanted.tolist(), view.sources_of(wanted).tolist(), strict=True):
        assert text.startswith(f"{sample} at place ") and f"\n{prefixes[source]} document " in text
        assert prefixes[1 - source] not in text
        read = " ".join(line for line in text.splitlines() if line.startswith("  ")).split()
        assert read == [str(token) for token in view[sample].tolist()]


def test_what_a_run_decided_about_its_weights_is_followed(tmp_path: Path, capsys):
    """Up to the step that is asked for; steps whose weights the run has not found yet are refused."""
    prefixes = [make_dataset(tmp_path, name, seed) for seed, name in enumerate(("first", "second"))]
    run = tmp_path / "run"
    words = (
        f"--data-path 1 {prefixes[0]} 1 {prefixes[1]} --split 1 --seq-length 8 {NULL} --global-batch-size 4 "
        f"--blend-reweight-interval 3 --save {run}"
    )
    config = data_config(data_path=["1", prefixes[0], "1", prefixes[1]], split="1")
    view = build_datasets(DatasetRequest(config, TOKENIZER, 8, (64, 0, 0), 1234)).train
    for step, message in ((4, "losses up to step 3"), (99, "losses up to step 96")):
        with pytest.raises(ConfigError, match=message):
            explain_batch.main(f"{words} --step {step}".split())
    decisions = [Decision(3, 12, (0.1, 0.9), (1.0, 2.0)), Decision(6, 24, (0.8, 0.2), (3.0, 2.0))]
    weights = MetricsFile(run / "blend_weights.jsonl", 0)
    for decision in decisions:
        weights.append(decision.to_record())
        view.reweight(decision.consumed_samples, decision.weights)
    for step in (1, 3, 4, 6, 7, 9):
        assert ids_of(capsys, f"{words} --step {step}") == view.sample_ids(4 * (step - 1), 4).tolist(), step
    with pytest.raises(ConfigError, match=r"losses up to step 9.*does not have them yet"):
        explain_batch.main(f"{words} --step 10".split())
    with pytest.raises(ConfigError, match="for other datasets"):
        explain_batch.main(
            f"--data-path {prefixes[0]} --seq-length 8 {NULL} --global-batch-size 4 --save {run} --step 7".split()
        )


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
    """One dataset in the order that is a formula, and two under one order file."""
    prefixes = [str(tmp_path / f"data{index}") for index in range(processes)]
    for seed, prefix in enumerate(prefixes):
        write_dataset(Path(prefix), seed=seed)
    flags = f"--data-path {' '.join(prefixes)} --eval-iters 0 --global-batch-size 4 --num-workers {workers}"
    if len(prefixes) > 1:
        order = shuffled_order(prefixes, tmp_path / "x.order", seq_length=32, split="90,10,0")
        flags += f" --dataset-order {order}"
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
