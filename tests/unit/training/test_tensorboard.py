"""Megatron-LM's tags, and one value per step over a kill and a resume."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.source_losses import SourceTotals
from megatron_ext.training.tensorboard import TensorBoardWriter

EACH_STEP = ["learning-rate", "batch-size", "lm loss", "loss-scale", "grad-norm", "num-zeros", "params-norm"]


def train(writer: TensorBoardWriter, state: TrainState, until: int, life: float) -> None:
    while state.iteration < until:
        result = StepResult(
            lm_loss=life, learning_rate=0.5, global_batch_size=4, num_tokens=40, seconds=2.0,
            grad_norm=1.5, loss_scale=8.0, params_norm=3.0, num_zeros=2,
        )  # fmt: skip
        state.advance(result)
        writer.write_step(state, result, tflops_per_rank=0.25)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tags_and_values(tmp_path: Path):
    state = TrainState()
    writer = TensorBoardWriter(tmp_path, state)
    train(writer, state, 2, life=3.0)
    writer.write_evaluation(state, 2.0, "validation")
    writer.close()
    by_iteration, by_samples = scalars(tmp_path), scalars(tmp_path / "vs_samples")
    evaluation = ["lm loss validation", "lm loss validation ppl"]
    assert set(by_iteration) == {*EACH_STEP, *evaluation, "iteration-time", "throughput", "tokens-per-s"}
    assert set(by_samples) == {f"{tag} vs samples" for tag in (*EACH_STEP, *evaluation)}
    assert by_iteration["lm loss"] == [(1, 3.0), (2, 3.0)]
    assert by_samples["lm loss vs samples"] == [(4, 3.0), (8, 3.0)]
    assert by_iteration["tokens-per-s"] == [(1, 20.0), (2, 20.0)]
    assert by_iteration["throughput"][0] == (1, 0.25)
    assert by_iteration["lm loss validation ppl"] == [(2, pytest.approx(math.exp(2.0), rel=1e-6))]


def test_a_resume_leaves_one_value_per_step(tmp_path: Path):
    state = TrainState()
    first = TensorBoardWriter(tmp_path, state)
    train(first, state, 10, life=1.0)
    first.close()
    resumed = TrainState(iteration=6, consumed_samples=24, consumed_tokens=240)
    second = TensorBoardWriter(tmp_path, resumed)
    train(second, resumed, 8, life=2.0)
    second.close()
    lives = [1.0] * 6 + [2.0] * 2
    assert scalars(tmp_path)["lm loss"] == list(zip(range(1, 9), lives, strict=True))
    assert scalars(tmp_path / "vs_samples")["lm loss vs samples"] == list(zip(range(4, 36, 4), lives, strict=True))


def test_the_length_of_sequences_and_the_max_z_loss_are_written_where_they_are_known(tmp_path: Path):
    state, writer = TrainState(), TensorBoardWriter(tmp_path, TrainState())
    for seq_length in (4, 8):
        result = StepResult(1.0, 0.5, 4, 40, 2.0, seq_length=seq_length, max_z_loss=0.25)
        state.advance(result)
        writer.write_step(state, result, 0.0)
    writer.close()
    assert scalars(tmp_path)["seq-length"] == [(1, 4.0), (2, 8.0)]
    assert scalars(tmp_path)["max-z loss"] == [(1, 0.25), (2, 0.25)]


def test_what_was_not_computed_is_not_written(tmp_path: Path):
    state, result = TrainState(), StepResult(1.0, 0.5, 4, 40, 2.0)
    writer = TensorBoardWriter(tmp_path, state)
    state.advance(result)
    writer.write_step(state, result, 0.0)
    writer.close()
    absent = {"grad-norm", "num-zeros", "params-norm", "loss-scale", "seq-length"}
    assert not absent & set(scalars(tmp_path))


def test_each_source_of_a_blend_has_its_loss_and_share(tmp_path: Path):
    writer, state = TensorBoardWriter(tmp_path, TrainState()), TrainState(iteration=4, consumed_samples=16)
    writer.write_sources(state, ["a", "b"], SourceTotals(np.array([[12, 4], [3, 0], [2 * 65536, 0]])))
    writer.write_sources(state, [f"s{i}" for i in range(70)], SourceTotals.zeros(70))
    writer.close()
    found, by_samples = scalars(tmp_path), scalars(tmp_path / "vs_samples")
    assert found["lm loss a"] == [(4, pytest.approx(2 / 3))] and found["share b"] == [(4, 0.25)]
    assert by_samples["share a vs samples"] == [(16, 0.75)]
    assert "lm loss b" not in found and "share s63" in found and "share s64" not in found
