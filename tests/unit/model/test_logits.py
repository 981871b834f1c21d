"""`full_logits` gives the training model's own logits from full tensors, whatever layout the run was for."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.model.gpt import build_model
from megatron_ext.model.init import sharded_parameters
from megatron_ext.model.logits import full_logits
from megatron_ext.parallel.world import start_world
from megatron_ext.platform.cpu import CpuPlatform
from tests.unit.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_run

TOKENS = torch.randint(0, VOCAB_SIZE, (2, 13), generator=torch.Generator().manual_seed(0))


def trained(run: RunConfig) -> tuple[dict[str, Tensor], Tensor]:
    """Full weights by canonical name, every one of them moved, and the model's own logits of TOKENS."""
    with start_world(run, CpuPlatform()):
        [model] = build_model(run, VOCAB_SIZE, "cpu")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            model.eval()
            logits = model(TOKENS, torch.arange(13).expand_as(TOKENS), None)
        shards = sorted(sharded_parameters(model), key=lambda shard: shard.global_offset)
        weights: dict[str, Tensor] = {}
        for shard in shards:
            data = shard.data.detach().clone()
            weights[shard.key] = torch.cat([weights[shard.key], data]) if shard.key in weights else data
    return weights, logits[..., :VOCAB_SIZE]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_models_own_bit_for_bit(architecture: str):
    run = tiny_run(architecture)
    weights, expected = trained(run)
    read_names: list[str] = []

    def read(name: str) -> Tensor:
        read_names.append(name)
        return weights[name]

    logits = full_logits(run, VOCAB_SIZE, read, TOKENS)
    assert (logits.shape, logits.dtype) == ((2, 13, VOCAB_SIZE), torch.float32)
    assert logits.equal(expected)
    assert set(read_names) == set(weights)
    assert not logits.requires_grad and not dist.is_initialized()


@pytest.mark.parametrize(
    "values",
    [
        {"tensor_model_parallel_size": 2, "world_size": 2, "sequence_parallel": True},
        {"pipeline_model_parallel_size": 2, "world_size": 4},
        {"use_distributed_optimizer": True, "world_size": 8},
        {"bf16": True},
        {"hidden_dropout": 0.5, "attention_dropout": 0.5},
        {"make_vocab_size_divisible_by": 1000},
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    ],
    ids=lambda values: next(iter(values)),
)
def test_layout_precision_dropout_and_padding_of_the_run_do_not_matter(values: dict):
    weights, expected = trained(tiny_run())
    assert full_logits(tiny_run(**values), VOCAB_SIZE, weights.__getitem__, TOKENS).equal(expected)


def test_half_precision_weights_are_computed_in_fp32():
    weights, _ = trained(tiny_run())
    halved = {name: weight.bfloat16() for name, weight in weights.items()}
    widened = {name: weight.float() for name, weight in halved.items()}
    logits = [full_logits(tiny_run(bf16=True), VOCAB_SIZE, read.__getitem__, TOKENS) for read in (halved, widened)]
    assert logits[0].equal(logits[1])
