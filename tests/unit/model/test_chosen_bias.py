"""Each projection has a bias exactly when it was asked for, and hands out a copy of it."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.model.chosen_bias import ColumnParallelWithoutBias, RowParallelWithBias
from megatron_ext.parallel.world import World
from tests.unit.model.test_blocks import built


@pytest.mark.parametrize(
    ("architecture", "biased"),
    [
        ("llama", ()),
        ("qkv_bias", ("self_attention.linear_qkv",)),
        ("attention_bias", ("self_attention.linear_qkv", "self_attention.linear_proj")),
        ("output_and_down_bias", ("self_attention.linear_proj", "mlp.linear_fc2")),
    ],
)
def test_the_chosen_projections_have_a_bias_and_no_other(architecture: str, biased: tuple, world: World):
    model = built(architecture)
    expected = {f"decoder.layers.{layer}.{name}.bias" for layer in range(2) for name in biased}
    biases = {name: value for name, value in model.named_parameters() if name.endswith(".bias")}
    assert set(biases) == expected
    assert not any(value.count_nonzero() for value in biases.values())


def test_the_switch_for_all_biases_decides_nothing_for_a_chosen_one(world: World):
    mlp = built("output_and_down_bias").decoder.layers[0].mlp
    assert type(mlp.linear_fc1) is ColumnParallelWithoutBias and type(mlp.linear_fc2) is RowParallelWithBias
    assert not mlp.config.add_bias_linear
    assert built("megatron_default").decoder.layers[0].mlp.linear_fc1.bias is not None


def test_the_bias_comes_out_as_a_copy_with_the_gradient_of_the_parameter(world: World):
    """megatron-core hands out the parameter, whose gradient a recomputed module then asks for without end."""
    linear = built("output_and_down_bias").decoder.layers[0].mlp.linear_fc2
    with torch.no_grad():
        linear.bias.normal_()
    _, bias = linear(torch.randn(3, 2, 48))
    assert bias is not linear.bias and torch.equal(bias, linear.bias)
    bias.backward(torch.arange(32.0))
    assert torch.equal(linear.bias.grad, torch.arange(32.0))
