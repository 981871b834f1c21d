"""A checkpoint's optimizer state is the same whatever wraps the optimizer, and continues bit for bit (law L2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_ext.checkpoint.load import load_checkpoint
from megatron_ext.checkpoint.optimizer_state import optimizer_step, scaler_state, set_scaler_state
from megatron_ext.checkpoint.save import training_tensors
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.resume import save_state
from tests.unit.checkpoint.saved import VARIANTS, assert_same, components, save_trained, shards, state_of, train

TIED = {"architecture": "megatron_default"}


def load(parts: Components, root: Path, state: TrainState) -> TrainState:
    folder = root / f"iter_{state.iteration:07d}"
    vocab_size = parts.tokenizer.vocab_size
    record = load_checkpoint(folder, parts.run, vocab_size, parts.models, parts.optimizer)
    return TrainState.from_dict(record.state)


def save_and_load(world: World, root: Path, saved: dict, loaded: dict) -> tuple[Components, Components, TrainState]:
    """Train and save with one setting, load with the other; the states are equal bit for bit."""
    parts, state = save_trained(world, root, 3, **saved)
    fresh = components(world, seed=99, **loaded)
    assert any(not torch.equal(a.data, b.data) for a, b in zip(shards(fresh), shards(parts), strict=True))
    resumed = load(fresh, root, state)
    assert resumed == state
    assert_same(state_of(fresh), state_of(parts))
    assert optimizer_step(fresh.optimizer) == optimizer_step(parts.optimizer)
    assert scaler_state(fresh.optimizer) == scaler_state(parts.optimizer)
    return parts, fresh, state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", [{}, TIED], ids=["untied", "tied"])
def test_a_resumed_run_is_the_uninterrupted_run(world: World, tmp_path: Path, variant: str, architecture: dict):
    settings = {**VARIANTS[variant], **architecture}
    parts, fresh, state = save_and_load(world, tmp_path, settings, settings)
    # what the optimizer keeps beyond its tensors would show here
    assert train(fresh, replace(state), 3) == train(parts, state, 3)
    assert_same(state_of(fresh), state_of(parts))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("to_distributed", [True, False])
@pytest.mark.parametrize("architecture", [{}, TIED], ids=["untied", "tied"])
def test_the_distributed_optimizer_can_be_turned_on_and_off(
    world: World, tmp_path: Path, precision: str, to_distributed: bool, architecture: dict
):
    plain, distributed = ({**VARIANTS[precision + kind], **architecture} for kind in ("", " distributed"))
    first, then = (plain, distributed) if to_distributed else (distributed, plain)
    parts, fresh, state = save_and_load(world, tmp_path, first, then)
    # the two sum the squares of the gradients in another order, so clipping may differ in the last bit
    found, expected = ([loss for loss, _, _ in train(run, replace(state), 3)] for run in (fresh, parts))
    assert found == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 1e-2)


def test_the_names_are_the_models(world: World):
    for variant, kinds in (("fp32", []), ("bf16", ["fp32_param"]), ("bf16 distributed", ["fp32_param"])):
        parts = components(world, **VARIANTS[variant])
        names = {shard.key for shard in shards(parts)}
        weights = {name for name in names if not name.startswith("optimizer.")}
        states = [*kinds, "exp_avg", "exp_avg_sq"]
        assert names == weights | {f"optimizer.state.{kind}.{weight}" for kind in states for weight in weights}
        assert "decoder.layers.1.mlp.linear_fc1.weight" in weights


@pytest.mark.parametrize("variant", ["fp32", "bf16", "sgd"])
def test_the_saved_tensors_are_the_optimizers_own(world: World, variant: str):
    """Independent of what loading does: each saved moment is the optimizer's moment of that parameter."""
    parts = components(world, **VARIANTS[variant])
    train(parts, TrainState(), 2)
    saved = state_of(parts)
    inner = parts.optimizer.optimizer
    for name, parameter in parts.models[0].named_parameters():
        main = getattr(parameter, "main_param", parameter)
        for kind, moment in inner.state[main].items():
            pieces = [data for (key, _), data in sorted(saved.items()) if key == f"optimizer.state.{kind}.{name}"]
            assert torch.equal(torch.cat([piece.flatten() for piece in pieces]), moment.flatten()), (kind, name)
            assert moment.abs().sum() > 0


def test_the_model_is_saved_as_parameters_and_nothing_else(world: World):
    parts = components(world)
    tensors = training_tensors(parts.models, None, is_loading=False)
    assert set(tensors) == {"model0"}
    assert set(tensors["model0"]) == {name for name, _ in parts.models[0].named_parameters()}


def test_the_loss_scaler_continues_where_it_was(world: World, tmp_path: Path):
    parts, state = save_trained(world, tmp_path, 0, **{**VARIANTS["fp16"], "initial_loss_scale": 2.0**30})
    train(parts, state, 4)
    numbers = scaler_state(parts.optimizer)
    assert numbers["scale"] < 2.0**30, "this run was to overflow"
    assert state.skipped_iterations > 0
    save_state(parts, state)
    fresh = components(world, **VARIANTS["fp16"])
    assert scaler_state(fresh.optimizer) != numbers
    load(fresh, tmp_path, state)
    assert scaler_state(fresh.optimizer) == numbers


def test_a_run_without_scaler_ignores_saved_scaler_numbers(world: World):
    parts = components(world)
    assert scaler_state(parts.optimizer) is None
    set_scaler_state(parts.optimizer, {"scale": 3.0})
    assert scaler_state(parts.optimizer) is None
