"""Writes the blocks of one part: tokens gathered from the inputs, their loss mask, and what the manifest counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_ext import log
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackedPart, PackPlan
from megatron_ext.data.store.indexed_writer import IndexedWriter
from megatron_ext.data.store.loss_mask import NOT_LEARNED
from megatron_ext.native_numpy import Int64Array

SECONDS_BETWEEN_LINES = 10.0
_TOKENS_AT_A_TIME = 1 << 20


class BlockWriter:
    """An IndexedWriter that is fed with the blocks of a part.

    Memory holds about a million tokens at a time, or one block where that is more.

    Args:
        prefix: of the dataset to write.
        joined: the inputs.
        plan: the plan that the part is of.

    Attributes:
        writer: the dataset being written.
        largest_id: largest id so far, -1 for none.
        learned: tokens that are learned: not the first one of a block, before which nothing stands.
        blocks_without_labels: blocks of which nothing is learned.
    """

    def __init__(self, prefix: str, joined: JoinedDatasets, plan: PackPlan) -> None:
        self.writer = IndexedWriter(prefix, joined.dtype, plan.with_loss_mask)
        self.largest_id = -1
        self.learned = 0
        self.blocks_without_labels = 0
        self._prefix, self._joined, self._plan = prefix, joined, plan

    def write(self, part: PackedPart, clock: Callable[[], float] = time.monotonic) -> None:
        """Append all blocks of `part`, and tell how far it is every SECONDS_BETWEEN_LINES seconds.

        Raises:
            DataError: the disk is full.
        """
        started = told = clock()
        lengths = part.lengths()
        for first, last in _batches(lengths):
            tokens, mask = self._gather(part, lengths, first, last)
            self._count(tokens, mask, lengths[first:last])
            mask_bytes = mask.tobytes() if self._plan.with_loss_mask else None
            self.writer.append(tokens.tobytes(), lengths[first:last], mask_bytes)
            now = clock()
            if now - told >= SECONDS_BETWEEN_LINES:
                told = now
                left_s = (now - started) * (part.num_blocks - last) / last
                log.info(
                    f"Packed {last} of {part.num_blocks} blocks of {self._prefix} "
                    f"({self.writer.num_tokens / (now - started):.0f} tokens/s), {left_s:.0f} s left."
                )

    def _gather(
        self, part: PackedPart, lengths: Int64Array, first: int, last: int
    ) -> tuple[NDArray, NDArray[np.uint8]]:
        """The tokens of blocks `first : last` end to end, and their mask."""
        total = int(lengths[first:last].sum())
        tokens, mask = np.empty(total, self._joined.dtype), np.empty(total, np.uint8)
        bounds = part.bounds[first : last + 1].tolist()
        starts = part.starts[bounds[0] : bounds[-1]].tolist()
        ends = part.ends[bounds[0] : bounds[-1]].tolist()
        place = 0
        for block in range(last - first):
            padding = int(part.padding[first + block])
            if padding:
                tokens[place : place + padding] = self._plan.pad_id
                mask[place : place + padding] = NOT_LEARNED
                place += padding
            content = place
            for span in range(bounds[block] - bounds[0], bounds[block + 1] - bounds[0]):
                after = place + ends[span] - starts[span]
                self._joined.copy(starts[span], ends[span], tokens[place:after], mask[place:after])
                place = after
            mask[content : content + int(part.unlearned[first + block])] = NOT_LEARNED
        return tokens, mask

    def _count(self, tokens: NDArray, mask: NDArray[np.uint8], lengths: Int64Array) -> None:
        self.largest_id = max(self.largest_id, int(tokens.max()))
        begins = np.cumsum(lengths) - lengths
        learned = mask != NOT_LEARNED
        learned[begins] = False
        by_block = np.add.reduceat(learned, begins, dtype=np.int64)
        self.learned += int(by_block.sum())
        self.blocks_without_labels += int(np.count_nonzero(by_block == 0))


def _batches(lengths: Int64Array) -> Iterator[tuple[int, int]]:
    """Cut the blocks into runs of about _TOKENS_AT_A_TIME tokens, at least one block each."""
    through = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(through[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(through, before + _TOKENS_AT_A_TIME, side="right")))
        yield first, last
        first = last
