"""A stage that trains some parameters changes them alone, and keeps gradients and state for them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ext.checkpoint.index import IndexReader
from megatron_ext.errors import CheckpointError, ConfigError
from megatron_ext.optim.parameter_names import canonical_names
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.resume import save_state, start_state
from tests.unit.checkpoint.saved import train
from tests.unit.tiny import tiny_components, tiny_run

EMBEDDINGS = {"train_only": ("embedding.*", "output_layer.*")}
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def weights(parts: Components) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for parameter, name in canonical_names(parts.models).items()}


def changed(before: dict[str, torch.Tensor], parts: Components) -> set[str]:
    return {name for name, new in weights(parts).items() if not new.equal(before[name])}


WRAPPERS = [{}, {"bf16": True}, {"fp16": True, "loss_scale": 64.0}, {"use_distributed_optimizer": True, "bf16": True}]


@pytest.mark.parametrize("values", WRAPPERS, ids=str)
def test_embeddings_and_head_alone_are_trained(values: dict, world: World):
    parts = tiny_components(tiny_run(**values, **EMBEDDINGS), world)
    before, trained = weights(parts), {"embedding.word_embeddings.weight", "output_layer.weight"}
    train(parts, TrainState(), 3)
    assert changed(before, parts) == trained
    rows = sum(before[name].numel() for name in trained)
    inner = parts.optimizer.optimizer
    assert sum(moment.numel() for state in inner.state.values() for moment in state.values()) == 2 * rows
    assert sum(buffer.numel_unpadded for chunk in parts.chunks for buffer in chunk.buffers) == rows
    for parameter, name in canonical_names(parts.models).items():
        assert hasattr(parameter, "main_grad") is (name in trained)
        assert name in trained or parameter.grad is None


def test_the_trained_part_is_trained_as_in_the_whole_model(world: World):
    """The first update of what is trained is that of a run that trains everything, but for clipping."""
    whole, part = (tiny_components(tiny_run(clip_grad=0.0, **values), world) for values in ({}, EMBEDDINGS))
    train(whole, TrainState(), 1), train(part, TrainState(), 1)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert weights(whole)[name].equal(weights(part)[name])


def test_tied_embeddings_are_one_parameter(world: World):
    parts = tiny_components(tiny_run("megatron_default", train_only=("embedding.word*",)), world)
    before = weights(parts)
    train(parts, TrainState(), 2)
    assert changed(before, parts) == {"embedding.word_embeddings.weight"}
    with pytest.raises(ConfigError, match=r"--train-only output_layer.weight fits no .* a tied output layer is"):
        tiny_components(tiny_run("megatron_default", train_only=("output_layer.weight",)), world)


@pytest.mark.parametrize("modules", [RECOMPUTE, {"recompute_granularity": "selective", "recompute_modules": ("mlp",)}])
def test_recomputed_layers_behind_a_frozen_embedding_are_trained(modules: dict, world: World):
    frozen = {"freeze": ("embedding.*",)}
    plain, recomputed = (tiny_components(tiny_run(**frozen, **values), world) for values in ({}, modules))
    before = weights(plain)
    assert train(plain, TrainState(), 3) == train(recomputed, TrainState(), 3)
    assert changed(before, recomputed) == set(before) - {"embedding.word_embeddings.weight"}
    assert all(value.equal(weights(recomputed)[name]) for name, value in weights(plain).items())


def test_what_leaves_nothing_to_train_is_refused(world: World):
    with pytest.raises(ConfigError, match=r"--freeze \* leaves nothing to train"):
        tiny_components(tiny_run(freeze=("*",)), world)


@pytest.mark.parametrize("values", [{}, {"use_distributed_optimizer": True, "bf16": True}], ids=str)
def test_stages_follow_each_other(values: dict, world: World, tmp_path: Path):
    """Embeddings first, saved and resumed; then everything, from those weights."""
    first, second = str(tmp_path / "first"), tmp_path / "second"
    straight = tiny_components(tiny_run(save=first, **values, **EMBEDDINGS), world)
    state = TrainState()
    train(straight, state, 2)
    save_state(straight, state)
    tensors = set(IndexReader(tmp_path / "first" / "iter_0000002").tensors)
    assert "decoder.final_layernorm.weight" in tensors
    assert {name.split(".", 3)[3] for name in tensors if name.startswith("optimizer.")} == {
        "embedding.word_embeddings.weight", "output_layer.weight",
    }  # fmt: skip
    resumed = tiny_components(tiny_run(load=first, seed=9, **values, **EMBEDDINGS), world)
    after = start_state(resumed)
    resumed.run = straight.run
    assert train(resumed, after, 2) == train(straight, state, 2) and changed(weights(straight), resumed) == set()
    whole = {"load": first, "seed": 9, "save": str(second), **values}
    with pytest.raises(CheckpointError, match="frozen there, trained here"):
        start_state(tiny_components(tiny_run(**whole), world))
    parts = tiny_components(tiny_run(**whole, finetune=True), world)
    assert start_state(parts) == TrainState()
    before = weights(parts)
    train(parts, TrainState(), 1)
    assert len(changed(before, parts)) >= len(before) - 5  # bf16 norm weights may round back
