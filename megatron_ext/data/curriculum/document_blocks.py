"""Consecutive documents of a dataset, cut the same way by every run: what one worker scores in one go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer

BLOCK_TOKENS = 1 << 18
"""Most tokens of a block with more than one document."""
BLOCK_DOCUMENTS = 1 << 12
"""Most documents of a block."""


@dataclass(frozen=True)
class DocumentRange:
    """Documents `first` to `last`, the latter not included; small, for the way to a worker."""

    first: int
    last: int


def document_ranges(
    dataset: IndexedDataset, first: int = 0, tokens: int = BLOCK_TOKENS, documents: int = BLOCK_DOCUMENTS
) -> Iterator[DocumentRange]:
    """All documents from `first` on, in order; the ranges behind the end of any range do not depend on the start.

    Args:
        dataset: the opened dataset.
        first: 0, or the `last` of a range.
        tokens: most tokens of a range, unless a single document has more.
        documents: most documents of a range.
    """
    while first < dataset.num_documents:
        offsets = dataset.document_offsets(first, min(first + documents, dataset.num_documents))
        count = max(1, int(np.searchsorted(offsets - offsets[0], tokens, "right")) - 1)
        yield DocumentRange(first, first + count)
        first += count


class DocumentBlock:
    """The documents of a range.

    Args:
        dataset: the opened dataset.
        documents: which of its documents.
        tokenizer: what `texts` is decoded with; None where no text is asked for.

    Attributes:
        tokens: `[t]` of the stored type, a view into the map.
        lengths: int64 `[documents]`, tokens of each.
    """

    def __init__(self, dataset: IndexedDataset, documents: DocumentRange, tokenizer: Tokenizer | None = None) -> None:
        self._tokenizer, self._first = tokenizer, documents.first
        self._offsets = dataset.document_offsets(documents.first, documents.last)
        self.tokens = dataset.tokens[self._offsets[0] : self._offsets[-1]]
        self.lengths: NDArray[np.int64] = np.diff(self._offsets)

    @cached_property
    def document_of_token(self) -> NDArray[np.int64]:
        """The place in the block of the document of each token, int64 `[t]`."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def follows(self) -> NDArray[np.int64]:
        """Places of the tokens that have a token of the same document before them, int64 `[pairs]`."""
        is_first = np.zeros(len(self.tokens) + 1, bool)
        is_first[self._offsets[:-1] - self._offsets[0]] = True
        return np.flatnonzero(~is_first[:-1])

    @cached_property
    def texts(self) -> list[str]:
        """The text of each document; an end-of-document id at its end has none.

        Raises:
            TokenizerError: there is no tokenizer, or an id is outside its vocabulary.
        """
        return [self._text(place) for place in range(len(self.lengths))]

    def means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of values `[t]` over the tokens of each document, `[documents]`; 0 for one without tokens."""
        sums = np.bincount(self.document_of_token, values, len(self.lengths))
        return sums / np.maximum(self.lengths, 1)

    def _text(self, place: int) -> str:
        if self._tokenizer is None:
            raise AssertionError("a text was asked for, but no tokenizer was given")
        begin, end = self._offsets[place] - self._offsets[0], self._offsets[place + 1] - self._offsets[0]
        ids = self.tokens[begin:end].tolist()
        if ids and ids[-1] == self._tokenizer.eod_id:
            ids.pop()
        try:
            return self._tokenizer.decode(ids)
        except UnicodeDecodeError as error:
            raise DataError(f"document {self._first + place} cannot be decoded ({error.reason})") from None
