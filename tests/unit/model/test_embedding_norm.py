"""The norm after the embedding: where it stands, of which kind, and which of its gradients are summed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_ext.model.embedding_norm import add_embedding_norm
from megatron_ext.model.norm import LayerNorm, RMSNorm
from megatron_ext.parallel.world import World
from tests.unit.model.test_blocks import built, tokens


@pytest.mark.parametrize(("architecture", "norm"), [("bloom", LayerNorm), ("stretched", RMSNorm)])
def test_the_embeddings_norm_is_of_the_models_kind_and_eps(architecture: str, norm: type, world: World):
    model = built(architecture, layernorm_epsilon=3e-3)
    layer = model.embedding.word_embeddings_layernorm
    assert isinstance(layer, norm) and layer.eps == 3e-3
    with torch.no_grad():
        layer.weight.fill_(2.0)
        hidden = model.embedding(tokens(), None)
        expected = layer(model.embedding.word_embeddings.weight[tokens()]).transpose(0, 1)
    assert torch.equal(hidden, expected)


def test_learned_positions_are_added_to_what_the_norm_gives(world: World):
    model = built("megatron_default", embedding_layernorm=True)
    embedding = model.embedding
    with torch.no_grad():
        hidden = embedding(tokens(), torch.arange(16).expand(2, 16))
        normal = embedding.word_embeddings_layernorm(embedding.word_embeddings.weight[tokens()])
        expected = (normal + embedding.position_embeddings.weight[:16]).transpose(0, 1)
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize("sliced", [False, True])
def test_gradients_are_summed_over_slices_of_the_sequence_only(sliced: bool):
    config = SimpleNamespace(hidden_size=4, layernorm_epsilon=1e-5, params_dtype=torch.float32, sequence_parallel=True)
    embedding = torch.nn.Module()
    embedding.config, embedding.reduce_scatter_embeddings = config, sliced
    embedding.word_embeddings = torch.nn.Embedding(3, 4)
    add_embedding_norm(embedding, LayerNorm)
    marks = {parameter.sequence_parallel for parameter in embedding.word_embeddings_layernorm.parameters()}
    assert marks == {sliced}
