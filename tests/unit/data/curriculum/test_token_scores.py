"""Token scores against formulas written out for one document after the other."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum.document_blocks import DocumentBlock, DocumentRange
from megatron_ext.data.curriculum.ngram_counts import count_ngrams
from megatron_ext.data.curriculum.token_scores import bigram_loss, length, rarity, unigram_loss
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from tests.unit.data.small import random_documents


def scored(folder: Path, documents: list[list[int]]):
    write_indexed(folder / "data", documents, np.uint16)
    dataset = IndexedDataset(folder / "data")
    return DocumentBlock(dataset, DocumentRange(0, len(documents))), count_ngrams(dataset, True, lambda _: None)


def lists(seed: int) -> list[list[int]]:
    return [document.tolist() for document in random_documents(seed, 40, vocab_size=25)]


def test_length_and_rarity_by_hand(tmp_path: Path):
    block, counts = scored(tmp_path, [[1, 1, 2], [3], [], [1, 2, 2, 2]])
    assert length(block).tolist() == [3, 1, 0, 4]
    expected = [(2 * log(8 / 3) + log(8 / 4)) / 3, log(8), 0, (log(8 / 3) + 3 * log(8 / 4)) / 4]
    assert rarity(block, counts) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_unigram_loss_is_that_of_a_model_that_has_not_seen_the_document(seed: int, tmp_path: Path):
    documents = lists(seed)
    block, counts = scored(tmp_path, documents)
    expected = []
    for place, document in enumerate(documents):
        others = Counter(token for other in documents[:place] + documents[place + 1 :] for token in other)
        costs = [-log((others[token] + 1) / (others.total() + counts.num_ids)) for token in document]
        expected.append(sum(costs) / max(1, len(costs)))
    assert unigram_loss(block, counts) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_bigram_loss_is_that_of_a_model_that_has_not_seen_the_document(seed: int, tmp_path: Path):
    documents = lists(seed)
    block, counts = scored(tmp_path, documents)
    expected = []
    for place, document in enumerate(documents):
        rest = documents[:place] + documents[place + 1 :]
        tokens = Counter(token for other in rest for token in other)
        pairs = Counter(pair for other in rest for pair in pairwise(other))
        known = [(tokens[token] + 1) / (tokens.total() + counts.num_ids) for token in document]
        costs = [-log(known[0])] if document else []
        for (first, second), prior in zip(pairwise(document), known[1:], strict=True):
            costs.append(-log((pairs[first, second] + 100 * prior) / (tokens[first] + 100)))
        expected.append(sum(costs) / max(1, len(costs)))
    assert bigram_loss(block, counts) == pytest.approx(expected, rel=1e-12)


def test_shared_cells_never_give_more_than_certainty(tmp_path: Path):
    write_indexed(tmp_path / "data", lists(0), np.uint16)
    dataset = IndexedDataset(tmp_path / "data")
    block = DocumentBlock(dataset, DocumentRange(0, 40))
    losses = bigram_loss(block, count_ngrams(dataset, True, lambda _: None, table_bits=2))
    assert np.all(np.isfinite(losses)) and np.all(losses >= 0)


def test_order_matters_to_the_bigram_model_alone(tmp_path: Path):
    usual = [[1, 2, 3, 4, 5, 6]] * 30
    block, counts = scored(tmp_path, [*usual, [1, 2, 3, 4, 5, 6], [6, 3, 1, 5, 2, 4]])
    forwards, shuffled = bigram_loss(block, counts)[-2:]
    assert shuffled > forwards + 0.2
    assert np.ptp(unigram_loss(block, counts)[-2:]) < 1e-12 and np.ptp(rarity(block, counts)[-2:]) < 1e-12
