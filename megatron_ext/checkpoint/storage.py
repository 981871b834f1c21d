"""Tensors to and from disk through megatron-core's dist_checkpointing, without helper processes or open pickles."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from megatron_ext.errors import CheckpointError

METADATA = ".metadata"
"""torch.distributed.checkpoint's index of shards: a pickle, so it is read only after `check_metadata`."""


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


def save_tensors(tensors: ShardedStateDict, folder: Path) -> None:
    """Write the sharded tensors of all ranks into the empty `folder`; collective over all ranks."""
    dist_checkpointing.save(tensors, str(folder), sharded_strategy=DirectSave("torch_dist", 1))


def load_tensors(tensors: ShardedStateDict, folder: Path) -> dict[str, Any]:
    """Return `tensors` with every sharded entry replaced by this rank's slice; collective over all ranks.

    Raises:
        CheckpointError: the index of shards is not a plain index, or a tensor is not in the checkpoint.
    """
    check_metadata(folder)
    try:
        return dist_checkpointing.load(tensors, str(folder))
    except (dist_checkpointing.core.CheckpointingException, KeyError) as error:
        raise CheckpointError(f"{folder} does not hold this run's tensors", str(error).splitlines()[0]) from error


ALLOWED_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.planner")
ALLOWED_NAMES = {
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "tuple"),
    ("pathlib", "PosixPath"),
    ("pathlib", "Path"),
    ("collections", "OrderedDict"),
}
"""What an index of shards is made of; torch's dtypes are added by their type."""


class _IndexUnpickler(pickle.Unpickler):
    """Refuses every global that an index of shards does not need, before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not (is_dtype or module in ALLOWED_MODULES or (module, name) in ALLOWED_NAMES):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def check_metadata(folder: Path) -> None:
    """Refuse an index of shards that would import or call anything but an index's own classes (law L9).

    Raises:
        CheckpointError: the index is missing, damaged or holds code.
    """
    path = folder / METADATA
    try:
        data = path.read_bytes()
        for _ in pickletools.genops(data):
            pass
        _IndexUnpickler(io.BytesIO(data)).load()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing", fix="use another checkpoint with --ckpt-step") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is not an index of shards: {error}",
            "a checkpoint's index may hold shapes, offsets and file names only",
            "do not load this checkpoint unless you trust where it comes from; use another one",
        ) from None
