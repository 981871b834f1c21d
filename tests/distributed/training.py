"""What the workers do with a tiny run: build it, train it, look at its whole state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_ext.checkpoint.save import training_tensors
from megatron_ext.config import RunConfig
from megatron_ext.data.datasets import build_datasets
from megatron_ext.parallel.world import start_layout
from megatron_ext.platform import select_platform
from megatron_ext.tokenizer.build import build_tokenizer
from megatron_ext.training.components import Components, build_components, gathered_parameters
from megatron_ext.training.loop import dataset_request
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step

State = dict[str, np.ndarray]


@contextmanager
def started(run: RunConfig) -> Iterator[Components]:
    """Yield a freshly built run in its layout; collective over all ranks."""
    tokenizer = build_tokenizer(run.data.tokenizer_type, run.data.tokenizer_model, run.model.vocab_size)
    datasets = build_datasets(dataset_request(run, tokenizer))
    with start_layout(run, select_platform(run.parallel.device)) as world:
        parts = build_components(run, world, tokenizer, datasets)
        yield parts
        release(parts)


def release(parts: Components) -> None:
    """Cut the ring that no collector sees, so that models, optimizer and the threads of their groups can go.

    The models' configuration holds methods of the optimizer and of the gradient buffers, and these hold, through
    autograd's hooks, the models.
    """
    core = parts.models[0].config
    core.finalize_model_grads_func = core.grad_scale_func = core.no_sync_func = None


def train_steps(parts: Components, state: TrainState, steps: int) -> list[StepResult]:
    """Train `steps` iterations from `state`, which is advanced."""
    results, run, first = [], parts.run, state.consumed_samples
    batch_size, length = run.global_batch_size_at, run.seq_length_at
    with open_readers(parts, parts.datasets.train, first, batch_size, seq_length=length) as readers:
        for _ in range(steps):
            results.append(train_step(parts, state, readers))
            state.advance(results[-1])
    return results


def shards(parts: Components, with_optimizer: bool) -> list[ShardedTensor]:
    """Return this rank's pieces of the whole state, as a checkpoint would hold them."""
    optimizer = parts.optimizer if with_optimizer else None
    found: list[ShardedTensor] = []
    for entry in nested_values(training_tensors(parts.models, optimizer, is_loading=False)):
        if isinstance(entry, ShardedTensorFactory):
            found += [shard for shard in nested_values(entry.build()) if isinstance(shard, ShardedTensor)]
        elif isinstance(entry, ShardedTensor):
            found.append(entry)
    return found


def gathered_state(parts: Components, with_optimizer: bool = False) -> State:
    """Return full tensors by canonical name, put together from all ranks; the same on every rank. Collective."""
    with gathered_parameters(parts):
        mine = [
            (
                shard.key,
                tuple(shard.global_shape),
                tuple(shard.global_offset),
                shard.data.detach().float().cpu().numpy().copy(),
            )
            for shard in shards(parts, with_optimizer)
        ]
    pieces: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(pieces, mine)
    state: State = {}
    for name, shape, offset, data in (piece for share in pieces for piece in share):
        full = state.setdefault(name, np.full(shape, np.nan, dtype=np.float32))
        where = tuple(slice(start, start + length) for start, length in zip(offset, data.shape, strict=True))
        # replicas must agree bit for bit; NaN marks what nobody has written yet
        before = full[where]
        assert np.array_equal(before, data) or np.isnan(before).all(), f"replicas of {name} differ between ranks"
        full[where] = data
    return {name: unpadded(name, full) for name, full in state.items()}


def unpadded(name: str, full: np.ndarray) -> np.ndarray:
    """Cut the rows that only pad the vocabulary: their number depends on the layout."""
    from tests.distributed.tiny import VOCAB_SIZE

    return full[:VOCAB_SIZE] if "word_embeddings" in name or "output_layer" in name else full
