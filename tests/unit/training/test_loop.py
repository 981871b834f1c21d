"""The loop runs until there is a reason to stop, saves once, evaluates at the end, and keeps its configuration."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import yaml

from megatron_ext.config import load_run_config, run_config_from_dict
from megatron_ext.errors import ConfigError, MegatronExtError, TrainingError
from megatron_ext.model.counts import parameter_counts
from megatron_ext.parallel.world import World
from megatron_ext.training import loop
from megatron_ext.training.components import Components
from megatron_ext.training.evaluate import evaluate
from megatron_ext.training.loop import (
    SaveOnce,
    agree,
    dataset_request,
    describe_data,
    final_evaluation,
    introduce,
    pretrain,
    train,
)
from megatron_ext.training.metrics import TrainState, read_records
from megatron_ext.training.stop import StopConditions, StopReason, StopSignals
from tests.unit.tiny import TOKENIZER, VOCAB_SIZE, TokenView, tiny_components, tiny_run, write_random_dataset

FLAGS = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 24 --swiglu --normalization RMSNorm "
    "--position-embedding-type rope --disable-bias-linear --untie-embeddings-and-output-weights --seq-length 16 "
    "--micro-batch-size 2 --global-batch-size 4 --lr 1e-2 --lr-decay-style constant --train-iters 6 "
    "--eval-interval 3 --eval-iters 2 --log-interval 2 --split 80,10,10 --tokenizer-type NullTokenizer "
    "--vocab-size 99 --num-workers 0 --num-threads 1 --device cpu --no-progress"
)


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    (tmp_path / "data").mkdir()
    return write_random_dataset(tmp_path / "data")


def start(prefix: str, *flags: object) -> None:
    pretrain(load_run_config([*FLAGS.split(), "--data-path", prefix, *map(str, flags)], 1), time.monotonic())


class Saves:
    """Stands for `save_state`: which iterations were saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.iterations: list[int] = []
        monkeypatch.setattr(loop, "save_state", lambda _, state: self.iterations.append(state.iteration))


def run_loop(parts: Components, state: TrainState | None = None, received: str | None = None) -> TrainState:
    state = state or TrainState()
    signals = StopSignals(enabled=False)
    signals.received = received
    train(parts, state, StopConditions(parts.run, state.iteration, time.monotonic(), signals))
    return state


@pytest.mark.parametrize("reason", StopReason)
def test_ranks_agree_on_what_a_world_of_one_votes(reason: StopReason, world: World):
    assert agree(reason) is reason


def test_the_strongest_vote_of_any_rank_wins(world: World, monkeypatch: pytest.MonkeyPatch):
    """Another rank's vote comes in by the maximum."""
    elsewhere = StopReason.SIGNAL

    def all_reduce(tensor: torch.Tensor, op: object) -> None:
        assert op == dist.ReduceOp.MAX
        tensor.clamp_(min=int(elsewhere))

    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    votes = [StopReason.NONE, StopReason.EXIT_DURATION, StopReason.COMPLETE]
    assert [agree(vote) for vote in votes] == [StopReason.SIGNAL, StopReason.SIGNAL, StopReason.COMPLETE]


def test_an_iteration_is_saved_once(monkeypatch: pytest.MonkeyPatch):
    saves = Saves(monkeypatch)
    save = SaveOnce(None)
    for iteration in (0, 0, 4, 4, 8):
        save(TrainState(iteration))
    assert saves.iterations == [0, 4, 8]


def test_an_iteration_whose_save_failed_is_saved_again(monkeypatch: pytest.MonkeyPatch):
    attempts = []

    def fail_once(_: object, state: TrainState) -> None:
        attempts.append(state.iteration)
        if len(attempts) == 1:
            raise OSError("disk full")

    monkeypatch.setattr(loop, "save_state", fail_once)
    save = SaveOnce(None)
    with pytest.raises(OSError):
        save(TrainState(3))
    save(TrainState(3))
    assert attempts == [3, 3]


class TestTrain:
    def test_it_ends_after_the_last_iteration(self, world: World, capsys: pytest.CaptureFixture):
        view = TokenView()
        state = run_loop(tiny_components(tiny_run(train_iters=5), world, train=view))
        assert (state.iteration, state.consumed_samples, state.consumed_tokens) == (5, 20, 320)
        assert view.seen == [i % 12 for i in range(20)]
        assert "stopped after iteration 5: all iterations are done" in capsys.readouterr().out

    def test_it_goes_on_from_a_state(self, world: World):
        view = TokenView()
        state = run_loop(tiny_components(tiny_run(train_iters=5), world, train=view), TrainState(3, 10, 160))
        assert (state.iteration, state.consumed_samples) == (5, 18)
        assert view.seen == [10, 11, 0, 1, 2, 3, 4, 5]

    def test_a_complete_run_does_not_train_again(self, world: World):
        view = TokenView()
        assert run_loop(tiny_components(tiny_run(train_iters=5), world, train=view), TrainState(5, 20)).iteration == 5
        assert view.seen == []

    def test_a_signal_ends_it_with_a_checkpoint_and_no_final_evaluation(
        self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        saves, valid = Saves(monkeypatch), TokenView(1)
        parts = tiny_components(tiny_run(save=str(tmp_path)), world, valid=valid)
        assert run_loop(parts, TrainState(2, 8), received="SIGTERM").iteration == 2
        assert saves.iterations == [2] and valid.seen == []

    def test_the_end_and_the_interval_save_once(self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        saves = Saves(monkeypatch)
        run_loop(tiny_components(tiny_run(train_iters=6, save=str(tmp_path), save_interval=3), world))
        assert saves.iterations == [3, 6]
        saves.iterations.clear()
        run_loop(tiny_components(tiny_run(train_iters=5, save=str(tmp_path), save_interval=3), world))
        assert saves.iterations == [3, 5]

    def test_without_save_nothing_is_saved(self, world: World, monkeypatch: pytest.MonkeyPatch):
        saves = Saves(monkeypatch)
        run_loop(tiny_components(tiny_run(train_iters=2), world))
        assert saves.iterations == []

    def test_exit_interval_ends_it_early(self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        saves = Saves(monkeypatch)
        run = tiny_run(train_iters=9, exit_interval=4, save=str(tmp_path))
        assert run_loop(tiny_components(run, world)).iteration == 4
        assert run_loop(tiny_components(run, world), TrainState(4, 16)).iteration == 8
        assert saves.iterations == [4, 8]

    def test_time_over_ends_it(self, world: World, monkeypatch: pytest.MonkeyPatch):
        parts = tiny_components(tiny_run(exit_duration_in_mins=1), world)
        now = time.monotonic()
        ticks = iter(range(1000))
        monkeypatch.setattr("time.monotonic", lambda: now + 25.0 * next(ticks))
        assert 0 < run_loop(parts).iteration < 5

    def test_updates_skipped_in_a_row_end_it_with_an_error_and_save_nothing(
        self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
    ):
        """Broken weights would overwrite good checkpoints, at the interval as at the end."""
        saves = Saves(monkeypatch)
        values = {"max_skipped_iterations": 4, "save": str(tmp_path), "save_interval": 2, "eval_iters": 0}
        parts, state = tiny_components(tiny_run(**values), world), TrainState()
        with torch.no_grad():
            parts.models[0].decoder.final_layernorm.weight[0] = math.nan
        with pytest.raises(TrainingError, match="the last 4 updates were skipped, up to iteration 4"):
            run_loop(parts, state)
        assert (state.iteration, state.skipped_in_a_row, saves.iterations) == (4, 4, [])
        captured = capsys.readouterr()
        assert "no checkpoint of iteration 2" in captured.err and "stopped after iteration 4" in captured.out

    def test_skip_train_only_evaluates(self, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        saves, train_view, valid, test = Saves(monkeypatch), TokenView(), TokenView(1), TokenView(2)
        run = tiny_run(skip_train=True, save=str(tmp_path))
        parts = tiny_components(run, world, train=train_view, valid=valid, test=test)
        assert run_loop(parts, TrainState(3, 12)).iteration == 3
        assert train_view.seen == [] and valid.seen == test.seen == list(range(8))
        assert saves.iterations == [] and list(tmp_path.iterdir()) == []

    def test_evaluations_come_at_the_interval_and_at_the_end(self, world: World, tmp_path: Path, monkeypatch):
        Saves(monkeypatch)
        valid, test = TokenView(1), TokenView(2)
        run = tiny_run(train_iters=5, eval_interval=2, save=str(tmp_path))
        run_loop(tiny_components(run, world, valid=valid, test=test))
        validations = read_records(tmp_path / "validation.jsonl")
        assert [record["iteration"] for record in validations] == [2, 4, 5]
        assert [record["iteration"] for record in read_records(tmp_path / "test.jsonl")] == [5]
        assert len(valid.seen) == 3 * 8 and len(test.seen) == 8

    def test_without_evaluation_iterations_nothing_is_evaluated(self, world: World):
        valid, test = TokenView(1), TokenView(2)
        run_loop(tiny_components(tiny_run(train_iters=2, eval_iters=0, eval_interval=1), world, valid=valid, test=test))
        assert valid.seen == test.seen == []


def test_the_final_evaluation_reports_each_view_under_its_name(world: World):
    reports: list[tuple] = []
    outputs = SimpleNamespace(report_evaluation=lambda state, loss, split: reports.append((state, loss, split)))
    parts = tiny_components(tiny_run(), world, valid=TokenView(1), test=TokenView(2))
    state = TrainState(7)
    final_evaluation(parts, state, outputs)
    assert reports == [(state, evaluate(parts, "valid"), "validation"), (state, evaluate(parts, "test"), "test")]
    reports.clear()
    final_evaluation(tiny_components(tiny_run(), world, test=TokenView(2)), state, outputs)
    assert [split for _, _, split in reports] == ["test"]
    reports.clear()
    final_evaluation(tiny_components(tiny_run(eval_iters=0), world, test=TokenView(2)), state, outputs)
    assert reports == []


@pytest.mark.parametrize(
    ("values", "num_samples"),
    [
        ({}, (80, 8, 8)),
        ({"train_iters": None, "train_samples": 83}, (80, 8, 8)),
        ({"eval_iters": 0}, (80, 0, 0)),
        ({"global_batch_size": 8, "eval_iters": 3}, (160, 24, 24)),
    ],
)
def test_the_data_is_asked_for_what_the_run_consumes(values: dict, num_samples: tuple[int, int, int]):
    request = dataset_request(tiny_run(**values), TOKENIZER)
    assert request.num_samples == num_samples
    assert (request.seq_length, request.seed, request.tokenizer) == (16, 1234, TOKENIZER)


def test_the_introduction_says_what_runs_and_keeps_the_configuration(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder = tmp_path / "new" / "run"
    run = tiny_run("megatron_default", save=str(folder))
    parts = tiny_components(run, world)
    introduce(parts, "cpu")
    line = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in parts.models[0].parameters())
    assert count == parameter_counts(run.model, 128, 16).total
    assert f"{count:,} parameters on 1 cpu process(es)" in line and "vocabulary 100 padded to 128" in line
    assert run_config_from_dict(yaml.safe_load((folder / "run_config.yaml").read_text())) == run


def test_only_rank_0_writes_the_configuration(world: World, tmp_path: Path):
    run = tiny_run(save=str(tmp_path / "run"))
    parts = tiny_components(run, world)
    parts.world = SimpleNamespace(**{**vars(world), "rank": 1})
    introduce(parts, "cpu")
    assert not (tmp_path / "run").exists()


def test_a_folder_for_the_profile_that_cannot_be_made_is_refused_at_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "profile").write_text("in the way")
    with pytest.raises(ConfigError, match="--profile profile "):
        introduce(tiny_components(tiny_run(profile=True), world), "cpu")


@pytest.mark.parametrize("flag", ["save", "tensorboard_dir"])
def test_an_output_folder_that_cannot_be_made_is_refused_at_once(flag: str, world: World, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    parts = tiny_components(tiny_run(**{flag: str(tmp_path / "file" / "run")}), world)
    with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} "):
        introduce(parts, "cpu")


def test_views_are_described_by_size():
    datasets = SimpleNamespace(train=TokenView(samples=7), valid=None, test=TokenView(samples=2))
    assert describe_data(datasets) == "samples in one epoch: train 7, test 2"


class TestPretrain:
    def test_from_flags_and_files_to_metrics(self, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture):
        start(prefix, "--save", tmp_path / "run", "--save-interval", 4)
        out = capsys.readouterr().out
        assert re.findall(r"iteration +(\d+)/ +6", out) == ["2", "4", "6"]
        records = read_records(tmp_path / "run" / "metrics.jsonl")
        assert [record["iteration"] for record in records] == list(range(1, 7))
        assert records[0]["lm_loss"] == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)
        assert [r["iteration"] for r in read_records(tmp_path / "run" / "validation.jsonl")] == [3, 6]
        folders = sorted(path.name for path in (tmp_path / "run").glob("iter_*"))
        assert folders == ["iter_0000004", "iter_0000006"]
        assert not dist.is_initialized()

    @pytest.mark.parametrize("lengths", [None, [4, 4, 4, 8, 16, 16]])
    def test_a_run_stopped_and_started_again_is_the_whole_run(self, lengths: list | None, prefix: str, tmp_path: Path):
        common = ["--hidden-dropout", 0.1, *(["--seq-length-warmup", "4:130", "8:64"] if lengths else [])]
        start(prefix, "--save", tmp_path / "whole", *common)
        for _ in range(3):
            start(prefix, "--save", tmp_path / "parts", "--load", tmp_path / "parts", *common, "--exit-interval", 2)
        whole, parts = (read_records(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
        for ours, theirs in zip(parts, whole, strict=True):
            for name in ("iteration", "consumed_samples", "lm_loss", "grad_norm", "learning_rate"):
                assert ours[name] == theirs[name], name
        assert [record.get("seq_length") for record in parts] == (lengths or [None] * 6)

    def test_wrong_data_is_refused_before_a_world_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(loop, "start_world", lambda *_: pytest.fail("a world was started"))
        with pytest.raises(MegatronExtError, match="missing"):
            start(str(tmp_path / "missing"))

    def test_a_policy_without_weights_is_refused_before_a_world_starts(
        self, prefix: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(loop, "start_world", lambda *_: pytest.fail("a world was started"))
        with pytest.raises(MegatronExtError, match="--blend-reweight-interval changes weights"):
            start(prefix, "--blend-reweight-interval", 2)

    def test_the_batch_of_the_first_start_is_kept_with_the_checkpoint(self, prefix: str, tmp_path: Path):
        """Without --global-batch-size the batch would follow the number of ranks of a later start."""
        flags = FLAGS.replace("--global-batch-size 4", "").split()
        pretrain(load_run_config([*flags, "--data-path", prefix, "--save", str(tmp_path / "run")], 1), time.monotonic())
        [folder] = (tmp_path / "run").glob("iter_*")
        stored = [
            json.loads(path.read_text()) for path in folder.glob("*.json") if "global_batch_size" in path.read_text()
        ]
        assert [record["run"]["train"]["global_batch_size"] for record in stored] == [2]
