"""Every output at its interval, in order, on the right rank; a killed and resumed run leaves whole files."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.config import RunConfig
from megatron_ext.training.hooks import HookParts, Outputs, StepContext, build_hooks
from megatron_ext.training.metrics import StepResult, TrainState, read_records
from megatron_ext.training.source_losses import Decision, SourceTotals

SEQUENCE = 16


def run_of(save: Path | None, **values: object) -> RunConfig:
    base = {
        "num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "seq_length": SEQUENCE, "micro_batch_size": 1,
        "global_batch_size": 4, "train_iters": 12, "eval_interval": 5, "save_interval": 4, "log_interval": 3,
        "save": str(save) if save else None,
    }  # fmt: skip
    return RunConfig().with_values(**{**base, **values})


class Life:
    """One start of the program, from `start` to iteration `until`; `calls` tells what the hooks called."""

    def __init__(self, run: RunConfig, until: int, start: TrainState | None = None, logging_rank: bool = True) -> None:
        self.calls: list[tuple[str, int]] = []
        state = start or TrainState()
        parts = HookParts(run, TrainState(**vars(state)), 32, logging_rank, self.evaluate, self.save)
        self.outputs = Outputs(parts)
        hooks = build_hooks(parts, self.outputs)
        while state.iteration < until:
            result = StepResult(10.0 / (state.iteration + 1), 1e-3, 4, 4 * SEQUENCE, 0.25, grad_norm=1.0)
            state.advance(result)
            for hook in hooks:
                hook(StepContext(state, result))
        self.outputs.close()

    def evaluate(self, state: TrainState) -> float:
        self.calls.append(("evaluate", state.iteration))
        return float(state.iteration)

    def save(self, state: TrainState) -> None:
        self.calls.append(("save", state.iteration))


def test_intervals_and_order(tmp_path: Path, capsys: pytest.CaptureFixture):
    life = Life(run_of(tmp_path, eval_interval=4), until=12)
    assert life.calls == [(call, i) for i in (4, 8, 12) for call in ("evaluate", "save")]
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("---")]
    kinds = [
        "validation" if "validation" in line else line.split("iteration")[1].split("/")[0].strip() for line in lines
    ]
    assert kinds == ["3", "validation", "6", "validation", "9", "12", "validation"]


def test_files_hold_every_iteration_and_evaluation(tmp_path: Path):
    Life(run_of(tmp_path), until=12)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record["iteration"] for record in records] == list(range(1, 13))
    assert [record["consumed_tokens"] for record in records] == [4 * SEQUENCE * i for i in range(1, 13)]
    assert records[0]["tokens_per_s"] == 256.0
    assert records[0]["tflops_per_rank"] > 0
    evaluations = read_records(tmp_path / "validation.jsonl")
    assert [(e["iteration"], e["consumed_samples"], e["lm_loss"]) for e in evaluations] == [
        (5, 20, 5.0),
        (10, 40, 10.0),
    ]


def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(tmp_path: Path):
    Life(run_of(tmp_path / "whole"), until=12)
    Life(run_of(tmp_path / "broken"), until=11)
    Life(run_of(tmp_path / "broken"), until=12, start=TrainState(8, 32, 32 * SEQUENCE))
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_other_ranks_take_part_in_what_is_collective_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = run_of(tmp_path / "run", tensorboard_dir=str(tmp_path / "tensorboard"))
    life = Life(run, until=12, logging_rank=False)
    assert life.calls == [("save", 4), ("evaluate", 5), ("save", 8), ("evaluate", 10), ("save", 12)]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_operations_are_those_of_the_sequences_that_were_trained():
    """The scores of attention grow with the length; everything else goes by tokens."""
    parts = HookParts(run_of(None), TrainState(), 32, True)
    whole, half, quarter = (
        parts.flops(StepResult(1.0, 1e-3, 4, 64, 0.25, seq_length=length)) for length in (None, 8, 4)
    )
    assert whole - half == 2 * (half - quarter) > 0
    assert whole == parts.flops(StepResult(1.0, 1e-3, 4, 64, 0.25, seq_length=SEQUENCE))


def test_without_a_save_folder_only_lines_come_out(tmp_path: Path, capsys: pytest.CaptureFixture):
    Life(run_of(None, save_interval=None), until=3)
    assert "iteration        3/      12" in capsys.readouterr().out


def test_a_test_evaluation_has_its_own_line_and_file(tmp_path: Path, capsys: pytest.CaptureFixture):
    parts = HookParts(run_of(tmp_path), TrainState(), 32, True)
    outputs = Outputs(parts)
    outputs.report_evaluation(TrainState(12, 48), 1.5, "test")
    outputs.close()
    assert "validation loss at iteration 12 on test set | lm loss value: 1.500000E+00" in capsys.readouterr().out
    assert [e["lm_loss"] for e in read_records(tmp_path / "test.jsonl")] == [1.5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["test.jsonl"]


def test_looking_at_an_old_checkpoint_leaves_the_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture):
    Life(run_of(tmp_path), until=12)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    run = run_of(tmp_path, skip_train=True, tensorboard_dir=str(tmp_path / "tensorboard"))
    outputs = Outputs(HookParts(run, TrainState(4, 16), 32, True))
    outputs.report_evaluation(TrainState(4, 16), 1.5)
    outputs.close()
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before
    assert "validation loss at iteration 4 |" in capsys.readouterr().out


def test_tensorboard_interval(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Life(run_of(None, tensorboard_dir=str(tmp_path), tensorboard_log_interval=4), until=12)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("lm loss")] == [4, 8, 12]


def test_manual_garbage_collection(monkeypatch: pytest.MonkeyPatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(gc.isenabled()))
    try:
        Life(run_of(None, manual_gc=True, manual_gc_interval=5), until=12)
        assert collected == [False] * 3  # once at the start, after iterations 5 and 10
    finally:
        gc.enable()
    Life(run_of(None), until=12)
    assert gc.isenabled()
    assert len(collected) == 3


class BlendLife:
    """Twelve steps on two sources with a decision every 5, on the logging rank or another one."""

    def __init__(self, run: RunConfig, logging_rank: bool = True) -> None:
        self.calls: list[str] = []
        self.state, start = TrainState(), TrainState()
        parts = HookParts(
            run, start, 32, logging_rank, save=lambda state: self.calls.append(f"save {state.iteration}"),
            sources=("a", "a"), reweight=self.reweight,
        )  # fmt: skip
        outputs = Outputs(parts)
        hooks = build_hooks(parts, outputs)
        for step in range(12):
            totals = SourceTotals(np.array([[3, 1], [30, 10], [step << 16, 1 << 16]]))
            result = StepResult(1.0, 1e-3, 4, 4 * SEQUENCE, 0.25, sources=totals)
            self.state.advance(result)
            for hook in hooks:
                hook(StepContext(self.state, result))
        outputs.close()

    def reweight(self, state: TrainState) -> Decision:
        self.calls.append(f"decide {state.iteration}")
        decision = Decision(
            state.iteration, state.consumed_samples, (0.5, 0.5), tuple(state.sources.since_decision.losses)
        )
        state.sources.decide(decision)
        return decision


def test_sources_are_reported_at_the_log_interval_and_decisions_where_they_fall(tmp_path: Path, capsys):
    run = run_of(tmp_path, log_interval=4, blend_reweight_interval=5, save_interval=5, train_iters=12)
    life = BlendLife(run)
    assert life.calls == ["decide 5", "save 5", "decide 10", "save 10"]
    records = read_records(tmp_path / "sources.jsonl")
    assert [(record["iteration"], record["consumed_samples"]) for record in records] == [(4, 16), (8, 32), (12, 48)]
    assert records[1]["sources"] == [
        {"name": "a #1", "samples": 12, "tokens": 120, "share": 0.75, "loss": (4 + 5 + 6 + 7) / 120},
        {"name": "a #2", "samples": 4, "tokens": 40, "share": 0.25, "loss": 0.1},
    ]
    decisions = read_records(tmp_path / "blend_weights.jsonl")
    assert [(record["iteration"], record["consumed_samples"]) for record in decisions] == [(5, 20), (10, 40)]
    assert decisions[1]["losses"] == [(5 + 6 + 7 + 8 + 9) / 150, 0.1]
    out = capsys.readouterr().out
    assert out.count("a #1: 75.00% of samples") == 3 and out.count("blend weights after iteration") == 2


def test_another_rank_counts_and_decides_alike_and_writes_nothing(tmp_path: Path, capsys):
    run = run_of(tmp_path / "run", log_interval=5, blend_reweight_interval=5, save_interval=None)
    there, here = BlendLife(run, logging_rank=False), BlendLife(run.with_values(save=None))
    assert there.state == here.state and there.calls == here.calls == ["decide 5", "decide 10"]
    assert there.state.sources.since_report.sums[0].tolist() == [6, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_blend_has_no_file_of_sources(tmp_path: Path):
    Life(run_of(tmp_path), until=12)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "validation.jsonl"]
