"""A checkpoint as full tensors on one CPU process: what conversion reads and writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_ext.checkpoint.index import IndexReader
from megatron_ext.checkpoint.manifest import faults_of_files, files_of, read_manifest
from megatron_ext.checkpoint.names import read_tracker, saved_folder, saved_iterations
from megatron_ext.checkpoint.record import CheckpointRecord, read_record
from megatron_ext.checkpoint.save import TOKENIZER_FOLDER, save_checkpoint
from megatron_ext.checkpoint.storage import TensorPlanner, cause_of
from megatron_ext.config import RunConfig
from megatron_ext.config.sections.parallel import ParallelConfig
from megatron_ext.errors import CheckpointError

OPTIMIZER_PREFIX = "optimizer."


class FullCheckpoint:
    """The weights of a checkpoint of any layout, read one full tensor at a time. Needs no process group.

    Args:
        folder: the folder of one checkpoint (`iter_...`).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.record: CheckpointRecord = read_record(folder)
        self._reader = IndexReader(folder)
        self._tensors: dict[str, TensorStorageMetadata] = {
            name: entry for name, entry in self._reader.tensors.items() if not name.startswith(OPTIMIZER_PREFIX)
        }

    @property
    def run(self) -> RunConfig:
        """The configuration it was trained with."""
        return self.record.run

    @property
    def vocab_size(self) -> int:
        """Number of tokens without padding; the embedding may have more rows."""
        return self.record.vocab_size

    @property
    def iteration(self) -> int:
        """Iterations trained."""
        return self.record.iteration

    @property
    def consumed_samples(self) -> int:
        """Samples trained on."""
        return self.record.state["consumed_samples"]

    @property
    def tokenizer_files(self) -> list[Path]:
        """The tokenizer's files, copies inside the checkpoint."""
        return [self.path / TOKENIZER_FOLDER / name for name in self.record.tokenizer_files]

    def names(self) -> list[str]:
        """Return the canonical names of all weights: megatron-core's, with global layer numbers."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the full shape of a weight, vocabulary padding included."""
        return tuple(self._tensors[name].size)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype a weight was trained in."""
        return self._tensors[name].properties.dtype

    def read(self, name: str) -> Tensor:
        """Return one full weight on the CPU."""
        tensor = torch.empty(self.shape(name), dtype=self.dtype(name))
        try:
            dcp.load({name: tensor}, storage_reader=self._reader, planner=TensorPlanner(), no_dist=True)
        except CheckpointException as error:
            raise CheckpointError(f"{name} of {self.path} cannot be read: {cause_of(error)}") from error
        return tensor


@dataclass(frozen=True)
class FullState:
    """A model to be written as a checkpoint.

    Attributes:
        run: its configuration; the layout in it does not matter.
        vocab_size: tokens without padding.
        tensors: canonical name and full tensor, vocabulary rows included.
        tokenizer_files: copied into the checkpoint.
        provenance: where it comes from, for a later model card.
    """

    run: RunConfig
    vocab_size: int
    tensors: Iterable[tuple[str, Tensor]]
    tokenizer_files: list[Path] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)


def open_full(path: Path | str) -> FullCheckpoint:
    """Open a checkpoint folder, or the newest checkpoint of a `--save` folder, every byte verified.

    Raises:
        CheckpointError: nothing is there, or it is damaged.
    """
    root = Path(path)
    folder = root
    if not root.name.startswith("iter_"):
        newest = read_tracker(root) if root.is_dir() else None
        candidates = [newest] if newest is not None else saved_iterations(root)[-1:]
        if not candidates:
            raise CheckpointError(f"{root} holds no checkpoint", fix="give a --save folder or one of its iter_ folders")
        folder = saved_folder(root, candidates[0])
    files = read_manifest(folder)
    faults = faults_of_files(folder, files, sorted(files))
    faults += [f"{name} is not in the manifest" for name in files_of(folder) if name not in files]
    if faults:
        raise CheckpointError(f"checkpoint {folder} is damaged: {'; '.join(faults[:5])}")
    return FullCheckpoint(folder)


def write_full(directory: Path | str, full: FullState) -> Path:
    """Write a checkpoint of iteration 0 that training can load under any layout; returns its folder.

    Starts a world of this one process for the time of the call. Holds all weights in memory at once, because
    megatron-core's writer takes a whole state.
    """
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform.cpu import CpuPlatform

    single = single_process(full.run)
    state = {"iteration": 0, "consumed_samples": 0, "consumed_tokens": 0}
    record = CheckpointRecord(
        run=single,
        vocab_size=full.vocab_size,
        state=state,
        tokenizer_files=[file.name for file in full.tokenizer_files],
        provenance=full.provenance,
    )
    with start_world(single, CpuPlatform()):
        tensors = {
            name: ShardedTensor.from_rank_offsets(name, tensor, allow_shape_mismatch=_is_vocabulary(name))
            for name, tensor in full.tensors
        }
        return save_checkpoint(Path(directory), tensors, record, full.tokenizer_files)


def single_process(run: RunConfig) -> RunConfig:
    """Return `run` laid out on one CPU process: nothing of its layout stays but the number of threads."""
    alone = ParallelConfig(device="cpu", num_threads=run.parallel.num_threads)
    return dataclasses.replace(run, parallel=alone, world_size=1)


def _is_vocabulary(name: str) -> bool:
    return name in ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
