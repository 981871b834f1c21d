"""TeleChat's packing of chat rows: weights, one shuffle, first fit per part of the pool, padding on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_ext.data.order import PermutedOrder
from megatron_ext.data.packing.first_fit import first_fit
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import Dropped, PackedPart, PackPlan, ragged_ranges
from megatron_ext.data.packing.settings import DEFAULT_SEED, FIRST_FIT, FIRST_FIT_MARGIN, PackSettings
from megatron_ext.data.packing.weighted_rows import check_weights, draw_copies, read_weights_file, shuffled_pool
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array


@dataclass(frozen=True)
class PackedRows:
    """Blocks of whole rows: block b holds the rows `rows[bounds[b] : bounds[b + 1]]`, int64 both."""

    rows: Int64Array
    bounds: Int64Array

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.bounds) - 1

    def take(self, blocks: Int64Array) -> PackedRows:
        """The blocks of these numbers, int64 `[n]`, in their order, any of them any number of times."""
        counts = np.diff(self.bounds)[blocks]
        rows = self.rows[ragged_ranges(self.bounds[:-1][blocks], counts)]
        return PackedRows(rows, np.concatenate([[0], np.cumsum(counts)]))


def plan_first_fit(joined: JoinedDatasets, settings: PackSettings) -> PackPlan:
    """The blocks of --method first-fit.

    As published, with three differences: pads are never learned, the learned span of an answer is the answer's own
    (the loss mask of each row travels with it), and a pool of rows that are all too long is an error, not a loop
    without end.

    Raises:
        DataError: weights do not fit the inputs, every row is too long, or a part of the pool has no row.
    """
    assert settings.seq_length is not None and settings.pad_id is not None
    joined.require_id("--pad-id", settings.pad_id)
    seed = DEFAULT_SEED if settings.seed is None else settings.seed
    weights = _weights(settings)
    documents, lengths = joined.documents(), np.diff(joined.offsets)
    copies = draw_copies(weights, np.diff(joined.first_documents).tolist(), seed)
    short = lengths < settings.seq_length - FIRST_FIT_MARGIN
    pool = shuffled_pool(documents, copies[documents], seed)
    _require_rows(pool, lengths, short, settings)
    packed = pack_pool(pool, lengths, short, settings)
    packed = packed.take(PermutedOrder(packed.num_blocks, f"{seed} blocks").sample_ids(0, packed.num_blocks))

    starts = joined.offsets[packed.rows]
    ends = joined.offsets[packed.rows + 1]
    through = np.concatenate([[0], np.cumsum(ends - starts)])
    used = through[packed.bounds[1:]] - through[packed.bounds[:-1]]
    times = np.bincount(packed.rows, minlength=len(lengths))
    not_drawn = (copies == 0) & (lengths > 0)
    too_long = ~short & (copies > 0)
    not_needed = (times == 0) & short & (copies > 0) & (lengths > 0)
    part = PackedPart(
        suffix="",
        seq_length=settings.seq_length,
        starts=starts,
        ends=ends,
        bounds=packed.bounds,
        padding=settings.seq_length - used,
        unlearned=np.zeros(packed.num_blocks, np.int64),
        dropped=tuple(
            Dropped(reason, int(np.count_nonzero(chosen)), int(lengths[chosen].sum()))
            for reason, chosen in (("not drawn", not_drawn), ("too long", too_long), ("not needed", not_needed))
        ),
        repeated_tokens=int((lengths * np.maximum(times - 1, 0)).sum()),
        facts={"rows_in_pool": len(pool)},
    )
    decided = {
        "packing": FIRST_FIT,
        "seq_length": settings.seq_length,
        "weights": list(weights),
        "pack_shards": settings.pack_shards or 1,
        "num_samples": settings.num_samples,
        "seed": seed,
        "pad_id": settings.pad_id,
    }
    return PackPlan(
        [part], True, decided, settings.pad_id, True, listed=np.flatnonzero(too_long), listed_reason="too long"
    )


def pack_pool(pool: Int64Array, lengths: Int64Array, short: np.ndarray, settings: PackSettings) -> PackedRows:
    """First fit in each contiguous part of the pool; the parts' blocks one after the other.

    Args:
        pool: int64 `[pool]`, rows in shuffled order.
        lengths: int64 `[rows]`, tokens of each row.
        short: bool `[rows]`, which rows may be packed at all.
        settings: seq_length, pack_shards, num_samples. With num_samples each part gives an equal number of blocks: it
            stops there, or begins its blocks again, in the same order, until it has them.

    Raises:
        DataError: a part has no row that is short enough, though blocks are wanted of it.
    """
    assert settings.seq_length is not None
    shards = settings.pack_shards or 1
    parts, wanted, first_block = [], [], 0
    for shard in range(shards):
        begin = shard * (len(pool) // shards)
        rows = pool[begin : begin + len(pool) // shards if shard < shards - 1 else len(pool)]
        rows = rows[short[rows]]
        bins = first_fit(lengths[rows], settings.seq_length - FIRST_FIT_MARGIN - 1)
        counts = np.bincount(bins)
        if settings.num_samples is not None and not len(counts):
            raise DataError(
                f"part {shard + 1} of {shards} has no row to make its blocks of",
                "Each of --pack-shards gives an equal share of --num-samples",
                "Use fewer parts",
            )
        quota = len(counts) if settings.num_samples is None else settings.num_samples // shards
        parts.append((rows[np.argsort(bins, kind="stable")], counts))
        if quota:
            wanted.append(first_block + np.arange(quota) % len(counts))
        first_block += len(counts)
    sizes = np.concatenate([counts for _, counts in parts])
    all_parts = PackedRows(np.concatenate([rows for rows, _ in parts]), np.concatenate([[0], np.cumsum(sizes)]))
    return all_parts.take(np.concatenate(wanted))


def _weights(settings: PackSettings) -> tuple[float, ...]:
    weights = settings.weights or (1.0,) * len(settings.inputs)
    if settings.weights_file is not None:
        weights = read_weights_file(settings.weights_file, settings.inputs)
    check_weights(weights, settings.inputs)
    return weights


def _require_rows(pool: Int64Array, lengths: Int64Array, short: np.ndarray, settings: PackSettings) -> None:
    assert settings.seq_length is not None
    if not len(pool):
        raise DataError("the weights leave no row to pack", fix="Use larger weights or more data")
    if not short[pool].any():
        raise DataError(
            f"every one of {len(pool)} rows is too long for --seq-length {settings.seq_length}",
            f"A row has fewer than {settings.seq_length - FIRST_FIT_MARGIN} tokens to be packed; the shortest has "
            f"{lengths[pool].min()}",
            "Use a longer --seq-length",
        )
    shards = settings.pack_shards or 1
    if shards > len(pool):
        raise DataError(f"--pack-shards {shards} is more than the {len(pool)} rows of the pool", fix="Use fewer parts")
