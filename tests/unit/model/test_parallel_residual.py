"""Attention and feed-forward block side by side: one norm, both branches added, both dropped."""

from __future__ import annotations

import torch

from megatron_ext.parallel.world import World
from tests.unit.model.test_blocks import built


def test_one_norm_serves_both_branches(world: World):
    layer = {name for name, _ in built("moss").decoder.layers[0].named_parameters()}
    assert layer == {
        "input_layernorm.weight", "input_layernorm.bias", "self_attention.linear_qkv.weight",
        "self_attention.linear_proj.weight", "mlp.linear_fc1.weight", "mlp.linear_fc1.bias", "mlp.linear_fc2.weight",
        "mlp.linear_fc2.bias",
    }  # fmt: skip


def test_both_branches_drop(world: World):
    """With a dropout near 1 nearly nothing is added to the residual stream, by neither branch."""
    model = built("moss", hidden_dropout=0.999)
    layer = model.decoder.layers[0]
    x = torch.randn(16, 2, 32)
    out, context = layer(x)
    assert context is None
    assert (out == x).float().mean() > 0.98
    assert (layer.eval()(x)[0] == x).float().mean() < 0.01


def test_the_layer_is_its_formula(world: World):
    layer = built("moss").decoder.layers[0].eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
        x = torch.randn(16, 2, 32)
        normal = layer.input_layernorm(x)
        attended, _ = layer.self_attention(normal, attention_mask=None)
        fed_forward, bias = layer.mlp(normal)
        torch.testing.assert_close(layer(x)[0], x + attended + fed_forward + bias)
