"""Initial weights as a function of (seed, canonical name, element index): the same in every layout (law L1)."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from megatron.core.transformer.module import MegatronModule

from megatron_ext.config import RunConfig
from megatron_ext.native import counter_normal

CHECKPOINT_METADATA = {"non_homogeneous_layers": True}
"""Asks megatron-core for one tensor per layer, named with the layer's global number: the canonical names."""


def sharded_parameters(model: MegatronModule) -> list[ShardedTensor]:
    """Return every parameter of this rank as megatron-core shards it: canonical name, full shape, offset, data.

    A gated `linear_fc1` comes as two shards of one full tensor, gate rows first; `data` is the parameter itself or
    a view of it.
    """
    shards: list[ShardedTensor] = []
    for entry in nested_values(model.sharded_state_dict(metadata=dict(CHECKPOINT_METADATA))):
        if isinstance(entry, ShardedTensorFactory):
            shards += [shard for shard in nested_values(entry.build()) if isinstance(shard, ShardedTensor)]
        elif isinstance(entry, ShardedTensor):
            shards.append(entry)
    return shards


@torch.no_grad()
def initialize_parameters(model: MegatronModule, run: RunConfig) -> None:
    """Fill every parameter of this rank: N(0, std) for matrices, 1 for norm weights, 0 for biases.

    Rank-local. std is `--init-method-std`, divided by sqrt(2 * layers) for the two projections that write to the
    residual stream. Element i of the full tensor NAME is std * normal(hash(seed, NAME), i).

    Source: the scaled output initialisation is Megatron-LM's `scaled_init_method_normal` (GPT-2's).
    """
    mark_tensor_parallel(model)
    for shard in sharded_parameters(model):
        data = shard.data.detach()
        if len(shard.global_shape) == 1:
            data.fill_(0.0 if shard.key.endswith(".bias") else 1.0)
        else:
            std = initial_std(shard.key, run)
            data.copy_(torch.from_numpy(_normal_slice(run.train.seed, shard)).mul_(std))


def initial_std(name: str, run: RunConfig) -> float:
    """Return the standard deviation of the initial matrix called `name`."""
    std = run.model.init_method_std
    writes_residual = name.endswith(("linear_proj.weight", "linear_fc2.weight"))
    return std / math.sqrt(2.0 * run.model.num_layers) if writes_residual else std


def mark_tensor_parallel(model: MegatronModule) -> None:
    """Say on every parameter whether, and along which dimension, tensor parallelism splits it.

    megatron-core does this inside its own initialisation, which is ours here; its gradient norm counts a parameter
    once per tensor-parallel group only if the mark says that it is not split.
    """
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
            _mark(module.weight, 0)
        elif isinstance(module, RowParallelLinear):
            _mark(module.weight, 1)


def _mark(weight: torch.nn.Parameter | None, dimension: int) -> None:
    if weight is not None:
        weight.tensor_model_parallel = True
        weight.partition_dim = dimension
        weight.partition_stride = 1


def _normal_slice(seed: int, shard: ShardedTensor) -> np.ndarray:
    """Return the standard normal numbers of this rank's slice, fp32, local shape."""
    digest = hashlib.blake2b(f"{seed}/{shard.key}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    rows, columns = shard.local_shape
    first_row, first_column = shard.global_offset
    width = shard.global_shape[1]
    if columns == width:
        return counter_normal(key, first_row * width, rows * columns).reshape(rows, columns)
    starts = (np.arange(first_row, first_row + rows) * width + first_column).tolist()
    return np.stack([counter_normal(key, start, columns) for start in starts])
