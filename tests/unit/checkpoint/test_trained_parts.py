"""A resume with other factors or other frozen parameters is told which; other words for the same ones are not other."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.errors import CheckpointError
from megatron_ext.parallel.world import World
from megatron_ext.training.resume import start_state
from tests.unit.checkpoint.saved import assert_same, components, save_trained, state_of

RATES = {"lr_multipliers": ("embedding.*=0.5",)}
FROZEN = {"freeze": ("embedding.*",)}


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (
            RATES,
            {},
            r"other --lr-multipliers: embedding\.word_embeddings\.weight x 0\.5 there, as usual here.*"
            r"--lr-multipliers embedding\.\*=0\.5.*--override-opt_param-scheduler",
        ),
        (RATES, {"lr_multipliers": ("embedding.*=2",)}, r"x 0\.5 there, x 2\.0 here"),
        (
            {},
            {"weight_decay_multipliers": ("*norm.weight=1",)},
            r"other --weight-decay-multipliers: .*layernorm\.weight as usual there, x 1\.0 here.*and 2 more",
        ),
    ],
)
def test_other_factors_are_refused_unless_the_new_ones_are_to_win(
    world: World, tmp_path: Path, saved: dict, resumed: dict, message: str
):
    _, state = save_trained(world, tmp_path, 2, **saved)
    with pytest.raises(CheckpointError, match=message):
        start_state(components(world, load=str(tmp_path), **resumed))
    with pytest.raises(CheckpointError, match=message):  # the checkpoint's cannot win over groups that are built
        start_state(components(world, load=str(tmp_path), use_checkpoint_opt_param_scheduler=True, **resumed))
    assert start_state(components(world, load=str(tmp_path), override_opt_param_scheduler=True, **resumed)) == state
    start_state(components(world, load=str(tmp_path), finetune=True, **resumed))


@pytest.mark.parametrize(
    ("saved", "resumed", "message"),
    [
        (FROZEN, {}, r"embedding\.word_embeddings\.weight frozen there, trained here"),
        ({}, FROZEN, r"embedding\.word_embeddings\.weight trained there, frozen here"),
        ({"train_only": ("output_layer.*",)}, {"freeze": ("output_layer.*",)}, r"and \d+ more"),
    ],
)
def test_other_frozen_parameters_are_refused_where_optimizer_state_is_wanted(
    world: World, tmp_path: Path, saved: dict, resumed: dict, message: str
):
    _, state = save_trained(world, tmp_path, 2, **saved)
    with pytest.raises(CheckpointError, match=rf"optimizer state for other parameters: .*{message}.*--no-load-optim"):
        start_state(components(world, load=str(tmp_path), **resumed))
    assert start_state(components(world, load=str(tmp_path), no_load_optim=True, **resumed)) == state


def test_other_words_for_the_same_parameters_go_on(world: World, tmp_path: Path):
    words = {"freeze": ("embedding.*",), "lr_multipliers": ("output_layer.*=0.5",)}
    others = {
        "train_only": ("decoder.*", "output_layer.weight"),
        "lr_multipliers": ("output_layer.*=3", "output_layer.weight=0.50"),
    }
    parts, state = save_trained(world, tmp_path, 2, **words)
    fresh = components(world, load=str(tmp_path), seed=9, **others)
    assert start_state(fresh) == state
    trained = {name: tensor for name, tensor in state_of(parts).items() if "embedding" not in name[0]}
    assert_same({name: state_of(fresh)[name] for name in trained}, trained)
