"""Factors by name reach exactly the parameters they are for, and a pattern without one is refused."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.errors import ConfigError
from megatron_ext.optim.groups import parameter_groups
from megatron_ext.optim.parameter_names import canonical_names
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.tiny import TokenView, tiny_components, tiny_run


def factors(parts: Components) -> dict[str, tuple[float, float]]:
    """Factors of rate and decay by name."""
    names = canonical_names(parts.models)
    groups = parameter_groups(parts.run, parts.chunks)
    return {names[p]: (group["lr_mult"], group["wd_mult"]) for group in groups for p in group["params"]}


def test_the_last_pattern_that_fits_holds_and_the_rest_keep_the_rule(world: World):
    run = tiny_run(
        "megatron_default",
        lr_multipliers=("decoder.*=0.5", "*layers.1.mlp*=3", "embedding.word_embeddings.weight=0"),
        weight_decay_multipliers=("embedding.*=0", "*final_layernorm.weight=0.25"),
    )
    found = factors(tiny_components(run, world))
    assert len(found) == len(factors(tiny_components(tiny_run("megatron_default"), world)))
    expected = {
        "embedding.word_embeddings.weight": (0.0, 0.0),
        "embedding.position_embeddings.weight": (1.0, 0.0),
        "decoder.layers.0.mlp.linear_fc1.weight": (0.5, 1.0),
        "decoder.layers.1.mlp.linear_fc1.weight": (3.0, 1.0),
        "decoder.layers.1.mlp.linear_fc1.bias": (3.0, 0.0),
        "decoder.final_layernorm.weight": (0.5, 0.25),
        "decoder.final_layernorm.bias": (0.5, 0.0),
    }
    assert {name: found[name] for name in expected} == expected


def test_the_order_of_groups_is_that_of_the_factors(world: World):
    run = tiny_run(lr_multipliers=("embedding.*=2", "output_layer.*=0.5"))
    keys = [(group["wd_mult"], group["lr_mult"]) for group in parameter_groups(run, tiny_components(run, world).chunks)]
    assert keys == [(1.0, 2.0), (1.0, 1.0), (1.0, 0.5), (0.0, 1.0)]


@pytest.mark.parametrize("sharded", [False, True])
def test_an_update_is_multiplied(sharded: bool, world: World):
    """The first step of Lion moves every element by the rate of its group; SGD would need no distributed optimizer."""
    values = {"optimizer": "lion", "weight_decay": 0.0, "lr": 0.125, "use_distributed_optimizer": sharded}
    parts = tiny_components(tiny_run(**values, lr_multipliers=("output_layer.*=0.5", "*norm.weight=4")), world)
    before = {name: p.detach().clone() for p, name in canonical_names(parts.models).items()}
    with open_readers(parts, TokenView(), 0, parts.run.global_batch_size_at) as readers:
        result = train_step(parts, TrainState(), readers)
    assert result.learning_rate == 0.125
    for parameter, name in canonical_names(parts.models).items():
        step = {"output_layer.weight": 0.0625}.get(name, 0.5 if name.endswith("norm.weight") else 0.125)
        moved = (parameter.detach() - before[name]).abs()
        torch.testing.assert_close(moved[moved > 1e-3], torch.full_like(moved[moved > 1e-3], step), rtol=1e-4, atol=0)
        assert (moved > 1e-3).any(), name


@pytest.mark.parametrize("flag", ["lr_multipliers", "weight_decay_multipliers"])
def test_a_pattern_that_fits_nothing_is_refused_with_near_names(flag: str, world: World):
    with pytest.raises(ConfigError, match=r"multipliers embeding.*fits no parameter.*near names: embedding.word_emb"):
        tiny_components(tiny_run(**{flag: ("*fc1*=1", "embeding.word_embedings.weight=0.1")}), world)
