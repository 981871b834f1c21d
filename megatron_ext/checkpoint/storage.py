"""Tensors to and from disk through megatron-core's dist_checkpointing, without helper processes or open pickles."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.common import TorchCommonLoadStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    MCoreSavePlanner,
    TorchDistLoadShardedStrategy,
    TorchDistSaveShardedStrategy,
    _replace_sharded_keys_with_state_dict_keys,
    _replace_state_dict_keys_with_sharded_keys,
    _restore_dict_types,
    _unwrap_pyt_sharded_tensor,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import ReadItem

from megatron_ext.checkpoint.index import IndexReader
from megatron_ext.errors import CheckpointError


class DirectSave(TorchDistSaveShardedStrategy):
    """megatron-core's `torch_dist` format, written by the calling process.

    The stock strategy forks two writer processes and a manager on every rank for every save, which a SIGKILL
    leaves behind and which costs more than small checkpoints themselves.
    """

    def save(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards into `checkpoint_dir`, forced to disk; collective over all ranks."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        dcp.save(
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, single_file_per_rank=True, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


class TensorPlanner(MCoreLoadPlanner):
    """Loads tensors only: torch would unpickle any other entry without restriction (law L9)."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuse an entry that is not a tensor."""
        del value
        raise ValueError(f"{read_item.dest_index.fqn} is a pickled object, not a tensor")


class DirectLoad(TorchDistLoadShardedStrategy):
    """megatron-core's `torch_dist` format, read through `read_index`; the stock strategy unpickles what it finds.

    Args:
        reader: of the checkpoint.
    """

    def __init__(self, reader: IndexReader) -> None:
        super().__init__()
        self._reader = reader

    def load(self, sharded_state_dict: ShardedStateDict, checkpoint_dir: str | Path) -> dict[str, Any]:
        """Return the state with this rank's slices; collective over all ranks."""
        del checkpoint_dir
        shards = [entry for entry in nested_values(sharded_state_dict) if isinstance(entry, ShardedTensor)]
        by_key, flat_names, renamed = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict)
        targets = mcore_to_pyt_state_dict(by_key, True)
        planner = TensorPlanner(
            shapes_validation_sharded_tensors=[shard for shard in shards if not shard.allow_shape_mismatch],
            allow_shape_mismatch_sharded_tensors={shard.key: shard for shard in shards if shard.allow_shape_mismatch},
        )
        dcp.load(targets, storage_reader=self._reader, planner=planner)
        loaded = {key: _unwrap_pyt_sharded_tensor(value) for key, value in targets.items()}
        state = _replace_sharded_keys_with_state_dict_keys(loaded, flat_names, renamed)
        _restore_dict_types(state, sharded_state_dict)
        return state


class NothingCommon(TorchCommonLoadStrategy):
    """Leaves `common.pt` alone: all that is not a tensor stands in the checkpoint's `state.json`."""

    def load_common(self, checkpoint_dir: str | Path) -> dict[str, Any]:
        """Return nothing."""
        del checkpoint_dir
        return {}


def save_tensors(tensors: ShardedStateDict, folder: Path) -> None:
    """Write the sharded tensors of all ranks into the empty `folder`; collective over all ranks.

    Raises:
        CheckpointError: a rank cannot write.
    """
    try:
        dist_checkpointing.save(tensors, str(folder), sharded_strategy=DirectSave("torch_dist", 1))
    except (CheckpointException, OSError) as error:
        raise CheckpointError(
            f"writing {folder} failed: {cause_of(error)}", fix="free space; older checkpoints are whole"
        ) from error


def load_tensors(tensors: ShardedStateDict, folder: Path) -> dict[str, Any]:
    """Return `tensors` with every sharded entry replaced by this rank's slice; collective over all ranks.

    Raises:
        CheckpointError: the index of shards is not a plain index, or a tensor is missing, unreadable or of another
            shape.
    """
    reader = IndexReader(folder)
    _refuse_other_tensors(tensors, reader, folder)
    try:
        return dist_checkpointing.load(
            tensors, str(folder), sharded_strategy=DirectLoad(reader), common_strategy=NothingCommon()
        )
    except (CheckpointException, dist_checkpointing.core.CheckpointingException, ValueError, TypeError) as error:
        raise CheckpointError(f"the tensors of {folder} cannot be read: {cause_of(error)}") from error


def _refuse_other_tensors(tensors: ShardedStateDict, reader: IndexReader, folder: Path) -> None:
    """Name the tensors that the run needs and the checkpoint lacks or holds in another shape."""
    differing, there = {}, reader.tensors
    for shard in _shards(tensors):
        stored = there.get(shard.key)
        if stored is None:
            differing[shard.key] = f"{shard.key} is not there"
        elif not shard.allow_shape_mismatch and tuple(stored.size) != tuple(shard.global_shape):
            differing[shard.key] = f"{shard.key} has shape {tuple(stored.size)} there, {tuple(shard.global_shape)} here"
    if differing:
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"{folder} does not hold this run's tensors: {'; '.join(list(differing.values())[:3])}{more}",
            "model, precision and optimizer must be those of the save",
            "give the flags it was saved with, or take its weights alone with --finetune or --no-load-optim",
        )


def _shards(tensors: ShardedStateDict) -> list[ShardedTensor]:
    built = [entry.build() if isinstance(entry, ShardedTensorFactory) else entry for entry in nested_values(tensors)]
    return [shard for shard in nested_values(built) if isinstance(shard, ShardedTensor)]


def cause_of(error: BaseException) -> str:
    """Return the first line of what went wrong on the first rank on which something did."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = min(error.failures.items(), key=lambda failure: failure[0])
        return f"on rank {rank}, {str(cause).strip().splitlines()[0] if str(cause).strip() else repr(cause)}"
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
