"""Counts against Python's own, exact and hashed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum import ngram_counts
from megatron_ext.data.curriculum.ngram_counts import count_ngrams, pair_cells
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.described import Record, write_run
from tests.unit.data.small import random_documents


@pytest.mark.parametrize("table_bits", [24, 8])
def test_counts_are_those_of_a_simple_loop(table_bits: int, tmp_path: Path):
    documents = random_documents(0, 100, vocab_size=40)
    write_indexed(tmp_path / "data", documents, np.uint16)
    told: list[int] = []
    counts = count_ngrams(IndexedDataset(tmp_path / "data"), True, told.append, table_bits)
    tokens = Counter(token for document in documents for token in document.tolist())
    pairs = Counter(pair for document in documents for pair in pairwise(document.tolist()))
    assert {token: count for token, count in enumerate(counts.tokens.tolist()) if count} == tokens
    assert counts.num_tokens == sum(told) == tokens.total() and counts.num_ids == max(tokens) + 1
    assert len(counts.pairs) == min(counts.num_ids**2, 2**table_bits) and counts.pairs.sum() == pairs.total()
    expected = Counter[int]()
    for (first, second), count in pairs.items():
        expected[int(counts.cells(np.array([first]), np.array([second]))[0])] += count
    assert {cell: count for cell, count in enumerate(counts.pairs.tolist()) if count} == expected


def test_pairs_have_cells_of_their_own_until_the_table_is_too_small():
    firsts, seconds = (axis.ravel() for axis in np.meshgrid(np.arange(16), np.arange(16)))
    assert len(set(pair_cells(firsts, seconds, 16, 256).tolist())) == 256
    hashed = pair_cells(firsts.astype(np.uint16), seconds.astype(np.uint16), 60000, 1 << 20)
    number = (3 * 60000 + 5) * 0x9E3779B97F4A7C15 % 2**64 >> 44
    assert hashed[(firsts == 3) & (seconds == 5)] == number
    assert hashed.min() >= 0 and hashed.max() < 1 << 20 and len(set(hashed.tolist())) > 240


def test_pairs_are_only_counted_when_asked_for(tmp_path: Path):
    prefix = write_run(tmp_path / "x", [Record("a", [1, 2, 3])])
    counts = count_ngrams(IndexedDataset(prefix), False, lambda _: None)
    assert len(counts.pairs) == 0 and counts.num_ids == 1001 and counts.num_tokens == 4


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, monkeypatch):
    prefix = write_run(tmp_path / "x", [Record("a", [1, 2, 5000])])
    with pytest.raises(DataError, match=r"holds the id 5000.*ids 0 to 1000"):
        count_ngrams(IndexedDataset(prefix), False, lambda _: None)
    write_indexed(tmp_path / "negative", [[1, -2]], np.int32)
    with pytest.raises(DataError, match="holds the id -2"):
        count_ngrams(IndexedDataset(tmp_path / "negative"), False, lambda _: None)
    monkeypatch.setattr(ngram_counts, "MOST_IDS", 100)
    write_indexed(tmp_path / "large", [[100]], np.int32)
    with pytest.raises(DataError, match="Ids up to 99 are counted"):
        count_ngrams(IndexedDataset(tmp_path / "large"), False, lambda _: None)
