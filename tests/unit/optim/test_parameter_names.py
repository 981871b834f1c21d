"""Canonical names are those of checkpoints; patterns that fit none are told with near ones."""

from __future__ import annotations

import pytest

from megatron_ext.errors import ConfigError
from megatron_ext.model.gpt import build_model
from megatron_ext.model.init import sharded_parameters
from megatron_ext.optim.parameter_names import canonical_names, names_of_all_ranks, refuse_unmatched
from megatron_ext.parallel.world import World
from tests.unit.tiny import VOCAB_SIZE, tiny_run

NAMES = ["decoder.final_layernorm.weight", "embedding.word_embeddings.weight", "output_layer.weight"]


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_every_parameter_has_the_name_of_its_tensor_in_a_checkpoint(architecture: str, world: World):
    models = build_model(tiny_run(architecture), VOCAB_SIZE, "cpu")
    names = canonical_names(models)
    assert set(names) == {parameter for model in models for parameter in model.parameters()}
    assert set(names.values()) == {shard.key for shard in sharded_parameters(models[0])}
    assert names_of_all_ranks([*names.values(), *names.values()]) == sorted(names.values())


def test_each_pattern_must_fit_a_name():
    refuse_unmatched(["*", "embedding.*", "output_layer.weight"], "--freeze", NAMES)
    with pytest.raises(ConfigError, match=r"--freeze output_layr.weight fits no .* near names: output_layer.weight"):
        refuse_unmatched(["*", "output_layr.weight"], "--freeze", NAMES)
    with pytest.raises(ConfigError, match=r"near names: decoder\.final"):
        refuse_unmatched(["QQQ"], "--freeze", NAMES)
