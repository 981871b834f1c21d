"""What a packing rule decides: which tokens stand in which block, and what became of all the others (law L5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ext.native_numpy import Int64Array


@dataclass(frozen=True)
class Dropped:
    """Tokens that stand in no block, and the documents of which no token does, for one reason."""

    reason: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class PackedPart:
    """The blocks of one output dataset, as index arrays: a block is padding followed by spans of the input tokens.

    Attributes:
        suffix: what the part adds to --output-prefix.
        seq_length: most tokens of a block.
        starts: int64 `[spans]`, first input token of each span.
        ends: int64 `[spans]`, the token after its last one.
        bounds: int64 `[blocks + 1]`, the spans of block b are `bounds[b] : bounds[b + 1]`.
        padding: int64 `[blocks]`, pad ids in front of each block; never learned.
        unlearned: int64 `[blocks]`, tokens after the padding that an earlier block has taught already.
        dropped: what of the input is not in this part.
        repeated_tokens: tokens that stand in the part once more than in the input.
        facts: what else the manifest says of this part.
    """

    suffix: str
    seq_length: int
    starts: Int64Array
    ends: Int64Array
    bounds: Int64Array
    padding: Int64Array
    unlearned: Int64Array
    dropped: tuple[Dropped, ...] = ()
    repeated_tokens: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self.padding)

    @property
    def num_tokens(self) -> int:
        """Tokens of all blocks, padding included."""
        return int((self.ends - self.starts).sum() + self.padding.sum())

    def lengths(self) -> Int64Array:
        """Tokens of each block, padding included, int64 `[blocks]`."""
        through = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return through[self.bounds[1:]] - through[self.bounds[:-1]] + self.padding


@dataclass(frozen=True)
class PackPlan:
    """All that one run of tools/pack_dataset.py will write.

    Attributes:
        parts: one output dataset each; those without a block are not written.
        with_loss_mask: the outputs have loss masks.
        settings: the settings that decided the blocks, for the manifest.
        pad_id: the id that fills `padding`, None where there is none.
        whole_documents: every block ends where a document ends.
        listed: int64 `[n]`, documents to be listed in `PREFIX.dropped.jsonl`, all for `listed_reason`.
        listed_reason: why.
    """

    parts: Sequence[PackedPart]
    with_loss_mask: bool
    settings: dict[str, Any]
    pad_id: int | None = None
    whole_documents: bool = False
    listed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    listed_reason: str = ""


def ragged_ranges(starts: Int64Array, counts: Int64Array) -> Int64Array:
    """`starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ...`, int64 `[sum of counts]`."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
