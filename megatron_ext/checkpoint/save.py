"""Saving: written beside, checksummed by all ranks, forced to disk, renamed; the tracker last (law L7)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedStateDict
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.module import MegatronModule

from megatron_ext.atomic import fsync_path, publish_folder
from megatron_ext.checkpoint.manifest import describe_file, files_of, write_manifest
from megatron_ext.checkpoint.names import (
    checkpoint_folder,
    clear_leftovers,
    replaced_folder,
    staging_folder,
    write_tracker,
)
from megatron_ext.checkpoint.optimizer_state import sharded_optimizer_state
from megatron_ext.checkpoint.record import CheckpointRecord, write_record
from megatron_ext.checkpoint.retention import delete_superseded
from megatron_ext.checkpoint.storage import save_tensors
from megatron_ext.errors import CheckpointError
from megatron_ext.model.init import CHECKPOINT_METADATA

TOKENIZER_FOLDER = "tokenizer"
_STILL_WHOLE = "free space or choose another --save; older checkpoints are whole"


@dataclass(frozen=True)
class Retention:
    """Which older checkpoints outlive a new one; see `retention.superseded`."""

    keep_last: int | None = None
    retain_interval: int | None = None


def model_tensors(models: Sequence[MegatronModule]) -> ShardedStateDict:
    """Return the sharded tensors of this rank's model chunks, named by layer; the data are the parameters.

    megatron-core's `_extra_state` objects are left out: they are empty, and would be stored as pickles (law L9).
    """
    states = [model.sharded_state_dict(metadata=dict(CHECKPOINT_METADATA)) for model in models]
    return {
        f"model{index}": {name: entry for name, entry in state.items() if not isinstance(entry, ShardedObject)}
        for index, state in enumerate(states)
    }


def training_tensors(
    models: Sequence[MegatronModule], optimizer: MegatronOptimizer | None, is_loading: bool
) -> ShardedStateDict:
    """Return the sharded tensors of the model and, unless None, of the optimizer."""
    tensors = model_tensors(models)
    if optimizer is not None:
        # a copy: describing the optimizer must not change the model's entries
        tensors["optimizer"] = sharded_optimizer_state(optimizer, model_tensors(models), is_loading)
    return tensors


def save_checkpoint(
    root: Path,
    tensors: ShardedStateDict,
    record: CheckpointRecord,
    tokenizer_files: Sequence[Path] = (),
    retention: Retention | None = None,
) -> Path:
    """Write one checkpoint and make it the newest. Collective over all ranks.

    A kill at any moment leaves either the previous or the new state of `root`, never a mixture.

    Args:
        root: the `--save` folder, on a file system that all ranks share.
        tensors: from `training_tensors`.
        record: everything else; the same on every rank.
        tokenizer_files: copied into the checkpoint, so that an export needs nothing else.
        retention: what to delete afterwards; None deletes nothing.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the folder cannot be written (full disk, no permission); older checkpoints stay.
    """
    staging, final = staging_folder(root, record.iteration), checkpoint_folder(root, record.iteration)
    _on_rank_0(lambda: _start(root, staging), f"--save {root} cannot be written")
    save_tensors(tensors, staging)
    _on_rank_0(lambda: _add_plain_files(staging, record, tokenizer_files), f"writing {staging} failed")
    descriptions = _describe_together(staging)

    def publish() -> None:
        write_manifest(staging, descriptions)
        replaced = replaced_folder(root, record.iteration)
        if final.exists():
            os.replace(final, replaced)  # readers look here while `final` is missing
        publish_folder(staging, final)
        write_tracker(root, record.iteration)
        shutil.rmtree(replaced, ignore_errors=True)
        if retention is not None:
            delete_superseded(root, record.iteration, retention.keep_last, retention.retain_interval)

    _on_rank_0(publish, f"publishing {final} failed")
    return final


def _start(root: Path, staging: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    clear_leftovers(root)
    staging.mkdir()


def _add_plain_files(staging: Path, record: CheckpointRecord, tokenizer_files: Sequence[Path]) -> None:
    write_record(staging, record)
    if tokenizer_files:
        (staging / TOKENIZER_FOLDER).mkdir()
        for file in tokenizer_files:
            shutil.copyfile(file, staging / TOKENIZER_FOLDER / file.name)
        fsync_path(staging / TOKENIZER_FOLDER)


def _describe_together(staging: Path) -> dict[str, dict[str, int | str]]:
    """Checksum the files of `staging`, each rank a share; every rank gets all of them, or the same error."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine: dict[str, Any] | str
    try:
        mine = {name: describe_file(staging / name) for name in files_of(staging)[rank::world_size]}
    except OSError as error:
        mine = f"on rank {rank}, {error}"
    shares: list[dict[str, Any] | str] = [{} for _ in range(world_size)]
    dist.all_gather_object(shares, mine)
    together: dict[str, dict[str, int | str]] = {}
    for share in shares:
        if isinstance(share, str):
            raise CheckpointError(f"writing {staging} failed", share, _STILL_WHOLE)
        together |= share
    return together


def _on_rank_0(action: Any, what: str) -> None:
    """Run `action` on rank 0; every rank waits for it and raises if it failed."""
    outcome: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            outcome = [str(error)]
    dist.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise CheckpointError(what, outcome[0], _STILL_WHOLE)
