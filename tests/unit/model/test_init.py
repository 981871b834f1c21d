"""Initial weights are one function of (seed, canonical name, element index), whatever rank or slice computes them."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_ext import native_numpy
from megatron_ext.config import RunConfig
from megatron_ext.model.counts import parameter_counts
from megatron_ext.model.gpt import build_model
from megatron_ext.model.init import _normal_slice, initial_std, initialize_parameters, sharded_parameters
from megatron_ext.parallel.world import World, start_world
from megatron_ext.platform.cpu import CpuPlatform
from tests.unit.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_run


def full_weights(run: RunConfig) -> dict[str, Tensor]:
    """Full tensors by canonical name, put together from the shards of a world of one that is already there."""
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    full: dict[str, Tensor] = {}
    for shard in sharded_parameters(model):
        tensor = full.setdefault(shard.key, torch.full(shard.global_shape, float("nan")))
        place = tuple(slice(o, o + n) for o, n in zip(shard.global_offset, shard.local_shape, strict=True))
        tensor[place] = shard.data.detach().float()
    return full


def by_definition(seed: int, name: str, shape: tuple[int, ...], std: float) -> Tensor:
    """The formula of the module, with the NumPy twin of the generator."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    return torch.from_numpy(native_numpy.counter_normal(key, 0, math.prod(shape)).reshape(shape)) * std


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_its_definition(architecture: str, world: World):
    run = tiny_run(architecture, seed=77)
    weights = full_weights(run)
    for name, weight in weights.items():
        if weight.dim() == 1:
            assert (weight == (0.0 if name.endswith("bias") else 1.0)).all(), name
        else:
            expected = by_definition(77, name, tuple(weight.shape), initial_std(name, run))
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-8, msg=name)
    assert sum(weight.numel() for weight in weights.values()) == parameter_counts(run.model, 128, 16).total


def test_names_are_those_of_one_process_with_global_layer_numbers(world: World):
    layer = [
        "input_layernorm.weight", "self_attention.linear_qkv.weight", "self_attention.linear_proj.weight",
        "pre_mlp_layernorm.weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight",
    ]  # fmt: skip
    assert set(full_weights(tiny_run())) == {
        "embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight",
        *(f"decoder.layers.{i}.{name}" for i in range(2) for name in layer),
    }  # fmt: skip


def test_standard_deviations_are_those_asked_for(world: World):
    run = tiny_run(num_layers=8, hidden_size=64, init_method_std=0.05)
    for name, weight in full_weights(run).items():
        if weight.dim() == 2:
            scaled = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
            expected = 0.05 / math.sqrt(16) if scaled else 0.05
            assert weight.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(weight.mean().item()) < 5 * expected / math.sqrt(weight.numel()), name


def test_matrices_do_not_repeat_each_other(world: World):
    weights = [weight for weight in full_weights(tiny_run("megatron_default")).values() if weight.dim() == 2]
    starts = {tuple((weight.flatten()[:8] / weight.std()).tolist()) for weight in weights}
    assert len(starts) == len(weights)


def test_the_seed_decides(world: World):
    first, again, other = (full_weights(tiny_run(seed=seed)) for seed in (1, 1, 2))
    for name, weight in first.items():
        assert weight.equal(again[name])
        assert weight.dim() == 1 or not weight.equal(other[name])


def test_the_weights_do_not_depend_on_torchs_generator(world: World):
    torch.manual_seed(1)
    first = full_weights(tiny_run())
    torch.manual_seed(2)
    assert all(weight.equal(first[name]) for name, weight in full_weights(tiny_run()).items())


def test_more_layers_leave_the_first_ones_but_for_their_scale(world: World):
    """A name's tensor knows neither the number of layers nor the stage it stands on."""
    two, three = full_weights(tiny_run()), full_weights(tiny_run(num_layers=3))
    for name in two:
        rescaled = three[name] * (math.sqrt(6 / 4) if name.endswith(("linear_proj.weight", "fc2.weight")) else 1)
        torch.testing.assert_close(rescaled, two[name])


def test_padding_adds_rows_and_changes_none(world: World):
    bare = full_weights(tiny_run(make_vocab_size_divisible_by=1))
    padded = full_weights(tiny_run(make_vocab_size_divisible_by=128))
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert (len(bare[name]), len(padded[name])) == (100, 128)
        assert padded[name][:100].equal(bare[name])


def test_half_precision_rounds_the_same_numbers(world: World):
    exact, rounded = full_weights(tiny_run()), full_weights(tiny_run(bf16=True))
    assert all(rounded[name].equal(weight.bfloat16().float()) for name, weight in exact.items())


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_slices_of_any_rank_are_slices_of_the_whole(parts: int, dimension: int):
    shape = (12, 24)

    def shard(offset: tuple[int, int], local: tuple[int, int]) -> SimpleNamespace:
        return SimpleNamespace(key="w", local_shape=local, global_offset=offset, global_shape=shape)

    whole = _normal_slice(5, shard((0, 0), shape))
    size = shape[dimension] // parts
    local = (size, 24) if dimension == 0 else (12, size)
    slices = []
    for rank in range(parts):
        offset = (rank * size, 0) if dimension == 0 else (0, rank * size)
        slices.append(_normal_slice(5, shard(offset, local)))
        assert slices[-1].shape == local and slices[-1].dtype == np.float32
    assert np.array_equal(np.concatenate(slices, dimension), whole)
    inner = _normal_slice(5, shard((3, 7), (4, 5)))
    assert np.array_equal(inner, whole[3:7, 7:12])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_filled(architecture: str, world: World):
    """Nothing that megatron-core allocated uninitialised may stay so."""
    run = tiny_run(architecture)
    [model] = build_model(run, VOCAB_SIZE, "cpu")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize_parameters(model, run)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert parameter.equal(value)


def test_split_parameters_are_marked_and_others_are_not():
    """megatron-core's gradient norm counts an unmarked parameter on one tensor-parallel rank only."""
    split = {
        "embedding.word_embeddings.weight": 0, "output_layer.weight": 0, "self_attention.linear_qkv.weight": 0,
        "self_attention.linear_proj.weight": 1, "mlp.linear_fc1.weight": 0, "mlp.linear_fc2.weight": 1,
        "self_attention.linear_qkv.bias": 0, "mlp.linear_fc1.bias": 0,
    }  # fmt: skip
    run = tiny_run("megatron_default", untie_embeddings_and_output_weights=True)
    with start_world(run, CpuPlatform()):
        [model] = build_model(run, VOCAB_SIZE, "cpu")
        for name, parameter in model.named_parameters():
            dimension = next((dim for end, dim in split.items() if name.endswith(end)), None)
            assert getattr(parameter, "tensor_model_parallel", False) is (dimension is not None), name
            if dimension is not None:
                assert parameter.partition_dim == dimension, name
