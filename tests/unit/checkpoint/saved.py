"""Checkpoints of the smallest training there is, and how to compare two states bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_ext.checkpoint.save import save_checkpoint, training_tensors
from megatron_ext.config import RunConfig
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.resume import save_state
from megatron_ext.training.step import train_step
from tests.unit.tiny import tiny_components, tiny_run

FP16 = {"fp16": True, "loss_scale_window": 2, "initial_loss_scale": 2.0**10, "hysteresis": 2}
VARIANTS = {
    "fp32": {},
    "bf16": {"bf16": True},
    "fp16": FP16,
    "sgd": {"optimizer": "sgd", "sgd_momentum": 0.9},
    "sgd bf16": {"optimizer": "sgd", "sgd_momentum": 0.9, "bf16": True},
    "lion": {"optimizer": "lion"},
    "lion bf16 distributed": {"optimizer": "lion", "use_distributed_optimizer": True, "bf16": True},
    "muon": {"optimizer": "muon", "num_query_groups": 2},
    "muon bf16": {"optimizer": "muon", "bf16": True, "muon_use_nesterov": True},
    "fp32 distributed": {"use_distributed_optimizer": True},
    "bf16 distributed": {"use_distributed_optimizer": True, "bf16": True},
    "fp16 distributed": {"use_distributed_optimizer": True, **FP16},
}
"""Everything that changes what an optimizer keeps."""


def components(world: World, **values: object) -> Components:
    """A tiny run with the given settings."""
    architecture = str(values.pop("architecture", "llama"))
    return tiny_components(tiny_run(architecture, **values), world)


def train(parts: Components, state: TrainState, steps: int) -> list[tuple[float, float | None, float]]:
    """Train `steps` iterations from `state`, which is advanced; loss, gradient norm and rate of each."""
    results = []
    with open_readers(parts, parts.datasets.train, state.consumed_samples, parts.run.global_batch_size_at) as readers:
        for _ in range(steps):
            result = train_step(parts, state, readers)
            state.advance(result)
            results.append((result.lm_loss, result.grad_norm, result.learning_rate))
    return results


def save_trained(world: World, root: Path, steps: int = 2, **values: object) -> tuple[Components, TrainState]:
    """Train a fresh run for `steps` iterations and save it in `root`."""
    parts, state = components(world, save=str(root), **values), TrainState()
    train(parts, state, steps)
    save_state(parts, state)
    return parts, state


def save_filled(parts: Components, root: Path, iteration: int, value: int) -> Path:
    """Save a state in which every number is `value`, so that a mixture of two states can be seen."""
    from megatron_ext.checkpoint.record import CheckpointRecord

    fill(parts, value)
    state = TrainState(iteration, value, value).to_dict()
    record = CheckpointRecord(run=parts.run, vocab_size=parts.tokenizer.vocab_size, state=state, optimizer_step=value)
    return save_checkpoint(root, training_tensors(parts.models, parts.optimizer, False), record)


@torch.no_grad()
def fill(parts: Components, value: float) -> None:
    """Set every number of the model and the optimizer."""
    for shard in shards(parts):
        shard.data.fill_(value)


def numbers(parts: Components) -> set[float]:
    """The different numbers in model and optimizer."""
    return {number for shard in shards(parts) for number in shard.data.detach().float().unique().tolist()}


def shards(parts: Components) -> list[ShardedTensor]:
    """Every tensor of the state; their data are the live tensors, unless the distributed optimizer gathers copies."""
    found = []
    for entry in nested_values(training_tensors(parts.models, parts.optimizer, is_loading=False)):
        built = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        found += [shard for shard in nested_values(built) if isinstance(shard, ShardedTensor)]
    return found


def state_of(parts: Components) -> dict[tuple[str, tuple[int, ...]], torch.Tensor]:
    """A copy of every tensor by name and place."""
    return {(shard.key, tuple(shard.global_offset)): shard.data.detach().clone() for shard in shards(parts)}


def assert_same(found: dict, expected: dict) -> None:
    """Bit for bit, with equal names and types."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), f"{name} differs"


def with_load(run: RunConfig, root: Path, **values: object) -> RunConfig:
    """The run, loading from `root`."""
    return run.with_values(load=str(root), **values)
