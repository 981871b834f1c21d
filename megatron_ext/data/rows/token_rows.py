"""Rows of tokens with their loss-mask codes, laid end to end: made from segments, counted, chosen from, cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.rows.spans import Segment
from megatron_ext.data.store.loss_mask import LEARNED, NOT_LEARNED
from megatron_ext.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class TokenRows:
    """Rows laid end to end.

    Attributes:
        ids: int32 `[t]`.
        lengths: int64 `[rows]`, tokens of each row; their sum is t.
        codes: uint8 `[t]`, what is learned at each token; None: everything is learned.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    codes: NDArray[np.uint8] | None = None

    def over(self, limit: int | None) -> NDArray[np.bool_]:
        """Which rows are longer than `limit`, bool `[rows]`."""
        return np.zeros(len(self.lengths), np.bool_) if limit is None else self.lengths > limit

    def learned(self, limit: int | None = None) -> NDArray[np.int64]:
        """How many tokens of each row are learned, int64 `[rows]`, where rows beyond `limit` are to be cut.

        The token that `cut` puts at the end of a shortened row does not count.
        """
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        stops = ends if limit is None else np.where(self.over(limit), starts + limit - 1, ends)
        if self.codes is None:
            return stops - starts
        sums = np.concatenate(([0], np.cumsum(self.codes != NOT_LEARNED)))
        return sums[stops] - sums[starts]

    def select(self, keep: NDArray[np.bool_]) -> TokenRows:
        """The rows for which `keep`, bool `[rows]`, is true."""
        if keep.all():
            return self
        tokens = np.repeat(keep, self.lengths)
        return TokenRows(self.ids[tokens], self.lengths[keep], None if self.codes is None else self.codes[tokens])

    def cut(self, limit: int, eod: int) -> TokenRows:
        """Rows longer than `limit` lose their end; the last token that stays becomes `eod`, and is learned.

        Source: pleisto/yuren-13b, tools/prepare_dataset.
        """
        over = self.over(limit)
        if not over.any():
            return self
        starts = np.cumsum(self.lengths) - self.lengths
        kept = np.arange(len(self.ids)) - np.repeat(starts, self.lengths) < limit
        ids, lengths = self.ids[kept], np.minimum(self.lengths, limit)
        last = (np.cumsum(lengths) - 1)[over]
        ids[last] = eod
        if self.codes is None:
            return TokenRows(ids, lengths)
        codes = self.codes[kept]
        codes[last] = LEARNED
        return TokenRows(ids, lengths, codes)

    def with_ends(self, before: Sequence[int], after: Sequence[int]) -> TokenRows:
        """Rows that have tokens get learned ids before their first and after their last token."""
        filled = self.lengths > 0
        grown = np.where(filled, self.lengths + len(before) + len(after), 0)
        starts = (np.cumsum(grown) - grown)[filled]
        ends = np.cumsum(grown)[filled] - len(after)
        ids = np.empty(int(grown.sum()), np.int32)
        own = np.ones(len(ids), np.bool_)
        for first, added in ((starts, before), (ends, after)):
            for offset, index in enumerate(added):
                ids[first + offset] = index
                own[first + offset] = False
        ids[own] = self.ids
        if self.codes is None:
            return TokenRows(ids, grown)
        codes = np.full(len(ids), LEARNED, np.uint8)
        codes[own] = self.codes
        return TokenRows(ids, grown, codes)


def rows_of_segments(
    rows: Sequence[Sequence[Segment]], tokenizer: Tokenizer, special_ids: Mapping[str, int | None]
) -> TokenRows:
    """Encode the segments of some rows; a special token without an id (a bos that does not exist) is left out.

    Raises:
        TokenizerError: a text cannot be encoded.
    """
    segments = list(chain.from_iterable(rows))
    plain = tokenizer.encode_plain_batch([segment.text for segment in segments if not segment.special])
    marks = [special_ids[segment.text] for segment in segments if segment.special]
    special = np.fromiter((segment.special for segment in segments), np.bool_, len(segments))
    lengths = np.empty(len(segments), np.int64)
    lengths[~special] = plain.lengths
    lengths[special] = [mark is not None for mark in marks]
    of_special = np.repeat(special, lengths)
    ids = np.empty(len(of_special), np.int32)
    ids[~of_special] = plain.ids
    ids[of_special] = [mark for mark in marks if mark is not None]
    codes = np.fromiter((segment.learn for segment in segments), np.uint8, len(segments))
    ends = np.concatenate(([0], np.cumsum(lengths)))
    stops = np.concatenate(([0], np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)))))
    return TokenRows(ids, np.diff(ends[stops]), np.repeat(codes, lengths))


def rows_of_texts(texts: Sequence[str], tokenizer: Tokenizer) -> TokenRows:
    """Encode texts, with what the tokenizer itself puts around them; an empty text gives an empty row.

    Raises:
        TokenizerError: a text cannot be encoded.
    """
    filled = list(filter(None, texts))
    batch = tokenizer.encode_batch(filled)
    if len(filled) == len(texts):
        return TokenRows(batch.ids, batch.lengths)
    lengths = np.zeros(len(texts), np.int64)
    lengths[np.fromiter(map(bool, texts), np.bool_, len(texts))] = batch.lengths
    return TokenRows(batch.ids, lengths)
