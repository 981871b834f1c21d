"""How often each token, and each pair of tokens, occurs in a dataset: the models that the token scores go by.

Memory does not grow with the data. Counts of tokens need 8 bytes per id. Counts of pairs need 8 bytes for each of
`table_size` cells: with a vocabulary of v ids they are exact where v * v cells suffice; else a pair's cell is the
product of its number `first * v + second` with 2^64 divided by the golden ratio, cut to its upper bits
(Knuth, The Art of Computer Programming 3, 6.4: multiplicative hashing), and pairs may share a cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.document_blocks import DocumentBlock, document_ranges
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError

TABLE_BITS = 24
"""2^24 cells: 128 MiB for the pairs, shared by all workers; exact for up to 4096 ids."""
MOST_IDS = 1 << 24
"""Largest vocabulary whose tokens are counted, 128 MiB; a larger id without a manifest means damaged data."""

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NgramCounts:
    """Counts over all documents of a dataset.

    Attributes:
        tokens: int64 `[ids]`, how often each id occurs.
        pairs: int64 `[cells]`, how often the pairs of each cell occur, inside documents; empty where only the tokens
            were counted.
    """

    tokens: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @property
    def num_ids(self) -> int:
        """Size of the vocabulary."""
        return len(self.tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.tokens.sum())

    def cells(self, firsts: NDArray, seconds: NDArray) -> NDArray[np.int64]:
        """The cell of each pair of ids, int64 `[pairs]`."""
        return pair_cells(firsts, seconds, self.num_ids, len(self.pairs))


def pair_cells(firsts: NDArray, seconds: NDArray, num_ids: int, num_cells: int) -> NDArray[np.int64]:
    """The cell of each pair of ids, int64 `[pairs]`; a cell of its own where there are at least num_ids^2 of them.

    Args:
        firsts: ids `[pairs]`.
        seconds: the ids behind them.
        num_ids: size of the vocabulary.
        num_cells: a power of two where pairs have to share cells.
    """
    numbers = firsts.astype(np.uint64) * np.uint64(num_ids) + seconds.astype(np.uint64)
    if num_ids * num_ids <= num_cells:
        return numbers.astype(np.int64)
    shift = np.uint64(64 - (num_cells.bit_length() - 1))
    return ((numbers * _MULTIPLIER) >> shift).astype(np.int64)


def count_ngrams(
    dataset: IndexedDataset, with_pairs: bool, advance: Callable[[int], object], table_bits: int = TABLE_BITS
) -> NgramCounts:
    """Count all tokens of a dataset in one pass, and all pairs.

    Args:
        dataset: the opened dataset.
        with_pairs: count the pairs too.
        advance: told the number of tokens after each block.
        table_bits: there are 2^table_bits cells for the pairs, or fewer where every pair has its own.

    Raises:
        DataError: an id is negative or outside the vocabulary.
    """
    num_ids = _num_ids(dataset)
    num_cells = min(num_ids * num_ids, 1 << table_bits)
    tokens, pairs = np.zeros(num_ids, np.int64), np.zeros(num_cells if with_pairs else 0, np.int64)
    for documents in document_ranges(dataset):
        block = DocumentBlock(dataset, documents)
        _check_ids(block.tokens, num_ids, dataset.prefix)
        np.add.at(tokens, block.tokens, 1)
        if with_pairs:
            places = block.follows
            np.add.at(pairs, pair_cells(block.tokens[places - 1], block.tokens[places], num_ids, num_cells), 1)
        advance(len(block.tokens))
    return NgramCounts(tokens, pairs)


def _num_ids(dataset: IndexedDataset) -> int:
    if dataset.manifest is not None:
        return dataset.manifest.tokenizer.vocab_size
    largest = max(
        (int(dataset.tokens[first : first + (1 << 22)].max()) for first in range(0, dataset.num_tokens, 1 << 22)),
        default=0,
    )
    if largest >= MOST_IDS:
        raise DataError(
            f"{dataset.prefix} holds the id {largest}", f"Ids up to {MOST_IDS - 1} are counted", "The data is damaged"
        )
    return largest + 1


def _check_ids(tokens: NDArray, num_ids: int, prefix: str) -> None:
    smallest, largest = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
    if smallest < 0 or largest >= num_ids:
        raise DataError(
            f"{prefix} holds the id {smallest if smallest < 0 else largest}",
            f"Its vocabulary has ids 0 to {num_ids - 1}",
            "Make the dataset again, or copy it again",
        )
