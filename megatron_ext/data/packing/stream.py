"""Blocks of a plain stream: all documents end to end, cut every seq_length tokens; no token is lost."""

from __future__ import annotations

import numpy as np

from megatron_ext import log
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import Dropped, PackedPart, PackPlan
from megatron_ext.data.packing.settings import STREAM, PackSettings
from megatron_ext.errors import DataError


def plan_stream(joined: JoinedDatasets, settings: PackSettings) -> PackPlan:
    """The blocks of --method stream: over the whole input without any restart, the last one short or left out.

    Raises:
        DataError: with --drop-last no block is full.
    """
    assert settings.seq_length is not None
    seq_length, total = settings.seq_length, joined.num_tokens
    drop_last = bool(settings.drop_last)
    written = total // seq_length * seq_length if drop_last else total
    if written == 0:
        raise DataError(
            f"no block of --seq-length {seq_length} is full",
            f"The documents have {total} tokens",
            "Leave out --drop-last, or use a shorter --seq-length",
        )
    if not all(manifest.append_eod for manifest in joined.manifests):
        log.warn("not every input has an end-of-document id after each document: nothing separates them in a block")
    documents = joined.documents()
    starts = np.arange(0, written, seq_length)
    part = PackedPart(
        suffix="",
        seq_length=seq_length,
        starts=starts,
        ends=np.minimum(starts + seq_length, written),
        bounds=np.arange(len(starts) + 1),
        padding=np.zeros(len(starts), np.int64),
        unlearned=np.zeros(len(starts), np.int64),
        dropped=(Dropped("tail", int(np.count_nonzero(joined.offsets[documents] >= written)), total - written),),
    )
    decided = {"packing": STREAM, "seq_length": seq_length, "drop_last": drop_last}
    return PackPlan([part], with_loss_mask=joined.has_loss_mask, settings=decided)
