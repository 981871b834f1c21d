"""XuanYuan2's length buckets: blocks of several sizes, filled greedily, so that short documents waste little."""

from __future__ import annotations

import numpy as np

from megatron_ext.data.packing.first_fit import first_fit
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import Dropped, PackedPart, PackPlan, ragged_ranges
from megatron_ext.data.packing.settings import BUCKETS, CUT, DROP, REFUSE, PackSettings
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

_ELSEWHERE = "in another bucket"
_TOO_LONG = "longer than every bucket"


def plan_buckets(joined: JoinedDatasets, settings: PackSettings) -> PackPlan:
    """The blocks of --method buckets, one part per size.

    From the largest size down: the documents for which the next smaller size is too small are put into blocks by
    first fit, in their order; then shorter ones, in their order too, fill the room that these leave. A document
    longer than the largest size is refused, dropped, or cut into pieces of the largest size and a rest.

    Raises:
        DataError: a document is longer than the largest size and is to be refused, or none is left.
    """
    assert settings.bucket_sizes is not None
    sizes, rule = settings.bucket_sizes, settings.long_documents or REFUSE
    documents, offsets = joined.documents(), joined.offsets
    long = offsets[documents + 1] - offsets[documents] > sizes[-1]
    listed = documents[:0]
    if long.any() and rule == REFUSE:
        raise DataError(
            f"{np.count_nonzero(long)} of {len(documents)} documents are longer than the largest bucket",
            f"The longest has {(offsets[documents + 1] - offsets[documents]).max()} tokens, the bucket {sizes[-1]}",
            "Give a larger size, or --long-documents cut or drop",
        )
    if rule == DROP:
        documents, listed = documents[~long], documents[long]
    if not len(documents):
        raise DataError(f"every document is longer than the largest bucket, {sizes[-1]}", fix="Give a larger size")
    too_long = Dropped(_TOO_LONG, len(listed), int((offsets[listed + 1] - offsets[listed]).sum()))
    pieces = _Pieces(joined, documents, sizes[-1])
    parts = [pieces.take_part(place, sizes, too_long) for place in reversed(range(len(sizes)))][::-1]
    return PackPlan(
        parts,
        with_loss_mask=joined.has_loss_mask,
        settings={"packing": BUCKETS, "bucket_sizes": list(sizes), "long_documents": rule},
        whole_documents=not (rule == CUT and long.any()),
        listed=listed,
        listed_reason=_TOO_LONG,
    )


class _Pieces:
    """The documents cut to at most `largest` tokens: first tokens, ends and numbers of the documents, int64 each."""

    def __init__(self, joined: JoinedDatasets, documents: Int64Array, largest: int) -> None:
        begin, end = joined.offsets[documents], joined.offsets[documents + 1]
        counts = -(-(end - begin) // largest)
        self._documents = np.repeat(documents, counts)
        self._starts = np.repeat(begin, counts) + ragged_ranges(np.zeros_like(counts), counts) * largest
        self._lengths = np.minimum(self._starts + largest, np.repeat(end, counts)) - self._starts
        self._num_documents = len(documents)
        self._waiting = np.arange(len(self._starts))

    def take_part(self, place: int, sizes: tuple[int, ...], too_long: Dropped) -> PackedPart:
        """The part of the size at `place`, after those of all larger sizes."""
        size, smaller = sizes[place], sizes[place - 1] if place else 0
        opening = self._lengths[self._waiting] > smaller
        items = np.concatenate([self._waiting[opening], self._waiting[~opening]])
        bins = first_fit(self._lengths[items], size, openers=int(opening.sum()))
        order = np.argsort(bins, kind="stable")[np.count_nonzero(bins < 0) :]
        here, self._waiting = items[order], np.sort(items[bins < 0])
        blocks = np.bincount(bins[order])
        tokens, written = int(self._lengths[here].sum()), len(np.unique(self._documents[here]))
        return PackedPart(
            suffix=f"_{size}",
            seq_length=size,
            starts=self._starts[here],
            ends=self._starts[here] + self._lengths[here],
            bounds=np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64),
            padding=np.zeros(len(blocks), np.int64),
            unlearned=np.zeros(len(blocks), np.int64),
            dropped=(
                Dropped(_ELSEWHERE, self._num_documents - written, int(self._lengths.sum()) - tokens),
                too_long,
            ),
            facts={
                "waste": waste(tokens, len(blocks) * size),
                "waste_of_plain_padding": waste(tokens, len(here) * sizes[-1]),
            },
        )


def waste(tokens: int, room: int) -> float:
    """The share of `room` that padding takes when `tokens` stand in it; 0 for no room."""
    return round(1 - tokens / room, 6) if room else 0.0
