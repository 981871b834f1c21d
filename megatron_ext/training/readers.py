"""Opens the micro-batches for the model chunks of this rank that read data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from megatron_ext.data.loader import LoaderConfig, MicroBatches
from megatron_ext.model.gpt import positions_of
from megatron_ext.parallel.sequence_chunks import part_of
from megatron_ext.training.components import Components
from megatron_ext.training.forward import Batch
from megatron_ext.training.step import Readers

if TYPE_CHECKING:
    from megatron_ext.data.views import View

_STAY_ON_THE_HOST = {"document_starts", "sources"}
"""Attention plans by the first on the CPU, and on the device every layer would have to wait for them; the second go
to the device once per step."""
_OF_TOKENS = ("tokens", "labels", "loss_mask", "position_ids")
"""What each rank of a sequence takes its part of; it knows of the whole row where documents begin."""


@contextmanager
def open_readers(
    parts: Components,
    view: View,
    start_sample: int,
    global_batch_size: Callable[[int], int],
    record: Callable[[list[int]], None] | None = None,
    seq_length: Callable[[int], int] | None = None,
) -> Iterator[Readers]:
    """Yield one reader per model chunk, from `start_sample` of `view` on; close them at the end. Rank-local.

    Every tensor-parallel rank reads the same samples itself: a mapped file costs less than a broadcast. So does every
    context-parallel rank, which then keeps its part of each sequence, `[b, s/cp]`. Chunks that hold neither the
    embedding nor the output layer read nothing, unless their attention must know documents. The first chunk that reads
    tells `record` the sample ids of each micro-batch. `seq_length` is that of `LoaderConfig`.
    """
    run, at = parts.run, parts.world.at
    reads_documents = positions_of(run).reads_documents
    settings = LoaderConfig(
        micro_batch_size=run.train.micro_batch_size,
        dp_rank=at.dp_rank,
        dp_size=parts.world.grid.dp_size,
        num_workers=run.data.num_workers,
        eod_id=parts.tokenizer.eod_id,
        eod_mask_loss=run.data.eod_mask_loss,
        reset_position_ids=run.data.reset_position_ids,
        document_starts=reads_documents,
        seq_length=seq_length,
        consecutive=run.parallel.deterministic_data_parallel,
        places=run.train.neftune_noise_alpha > 0.0,
    )
    with ExitStack() as stack:
        readers: Readers = []
        for model in parts.models:
            if model.pre_process or model.post_process or reads_documents:
                batches = MicroBatches(view, start_sample, global_batch_size, replace(settings, record=record))
                record = None
                stack.callback(batches.close)
                readers.append(parts.profile.timed_items(_to_device(_own_parts(batches, parts), parts)))
            else:
                readers.append(None)
        yield readers


def _own_parts(batches: Iterator[Batch], parts: Components) -> Iterator[Batch]:
    rank, size = parts.world.at.cp_rank, parts.world.grid.cp_size
    if size == 1:
        return batches
    return (batch | {name: part_of(batch[name], rank, size, dim=1) for name in _OF_TOKENS} for batch in batches)


def _to_device(batches: Iterator[Batch], parts: Components) -> Iterator[Batch]:
    device = parts.world.device
    if device.type == "cpu":
        return batches
    return (
        {
            name: tensor if name in _STAY_ON_THE_HOST else tensor.to(device, non_blocking=True)
            for name, tensor in batch.items()
        }
        for batch in batches
    )
