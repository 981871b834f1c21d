"""Yuren's overlap: full blocks of a stream of documents, each repeating the end of the one before, unlearned."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import Dropped, PackedPart, PackPlan
from megatron_ext.data.packing.settings import LOOK_BACK_SHARE, OVERLAP, PackSettings
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array


def plan_overlap(joined: JoinedDatasets, settings: PackSettings) -> PackPlan:
    """The blocks of --method overlap.

    Raises:
        DataError: a document does not begin with the BOS, or there are fewer tokens than one block has.
    """
    assert settings.seq_length is not None and settings.bos_id is not None
    _require_bos(joined, settings.bos_id)
    seq_length, look_back = settings.seq_length, settings.seq_length // LOOK_BACK_SHARE
    ends = joined.offsets[1:][joined.documents()]
    windows: list[tuple[int, int]] = []
    dropped_documents = dropped_tokens = begin = 0
    every = settings.reset_every or len(ends)
    for first in range(0, len(ends), every):
        batch = ends[first : first + every]
        emitted = begin
        for start, repeated in overlap_windows(
            batch, begin, seq_length, _bos_finder(joined, settings.bos_id, look_back)
        ):
            windows.append((start, repeated))
            emitted = start + seq_length
        dropped_tokens += int(batch[-1]) - emitted
        dropped_documents += _documents_from(batch, begin, emitted)
        begin = int(batch[-1])
    if not windows:
        raise DataError(
            f"no block of --seq-length {seq_length} is full",
            f"The documents have {joined.num_tokens} tokens"
            + (f", and every {settings.reset_every} of them begin anew" if settings.reset_every else ""),
            "Use more data or a shorter --seq-length",
        )
    starts, repeated_by_block = np.array(windows, np.int64).T
    part = PackedPart(
        suffix="",
        seq_length=seq_length,
        starts=starts,
        ends=starts + seq_length,
        bounds=np.arange(len(starts) + 1),
        padding=np.zeros(len(starts), np.int64),
        unlearned=repeated_by_block,
        dropped=(Dropped("tail", dropped_documents, dropped_tokens),),
        repeated_tokens=int(repeated_by_block.sum()),
    )
    decided = {"seq_length": seq_length, "bos_id": settings.bos_id, "reset_every": settings.reset_every}
    return PackPlan([part], with_loss_mask=True, settings={"packing": OVERLAP, **decided})


def overlap_windows(
    ends: Int64Array, begin: int, seq_length: int, repeated_before: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """The blocks of one stream of documents, as (first token, how many leading tokens are repeated).

    The published rule: a document is appended to a buffer; when the buffer has at least `seq_length` tokens, the
    first of them are a block. A buffer of exactly that many is emptied, else the end of the block, from its last BOS
    within the look-back on, goes in front of what remains. A document causes at most one block; after the last
    document blocks are taken while the buffer is full, and the rest is dropped. The buffer is always one range of the
    stream, so it is never made.

    Args:
        ends: int64 `[documents]`, the token after each document; `begin` is where the first one starts.
        begin: first token of the stream.
        seq_length: tokens of a block.
        repeated_before: token number at which a block ends -> how many of its last tokens are repeated.

    Source: packing rule of Yuren-13B's trainer, without its restart after every 1000 rows.
    """
    start, repeated, document = begin, 0, -1
    while True:
        document = max(document + 1, int(np.searchsorted(ends, start + seq_length)))
        buffer_end = int(ends[min(document, len(ends) - 1)])
        if buffer_end - start < seq_length:
            return
        yield start, repeated
        block_end = start + seq_length
        repeated = 0 if buffer_end == block_end else repeated_before(block_end)
        start = block_end - repeated


def _bos_finder(joined: JoinedDatasets, bos_id: int, look_back: int) -> Callable[[int], int]:
    def repeated_before(block_end: int) -> int:
        places = np.flatnonzero(joined.tokens(block_end - look_back, block_end) == bos_id)
        return look_back - int(places[-1]) if places.size else look_back

    return repeated_before


def _documents_from(ends: Int64Array, begin: int, token: int) -> int:
    """How many documents of a stream begin at `token` or later."""
    starts = np.concatenate([[begin], ends[:-1]])
    return len(starts) - int(np.searchsorted(starts, token))


def _require_bos(joined: JoinedDatasets, bos_id: int) -> None:
    joined.require_id("--bos-id", bos_id)
    missing = joined.num_beginning_otherwise(bos_id)
    if missing:
        raise DataError(
            f"{missing} of {len(joined.documents())} documents do not begin with the BOS {bos_id}",
            "The rule finds the beginnings of documents by it",
            "Make the dataset with a BOS in front of each row, or give the id that is there with --bos-id",
        )
