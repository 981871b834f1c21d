"""Blocks hold every document once, in order, and are cut alike wherever a run begins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum.document_blocks import DocumentBlock, DocumentRange, document_ranges
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.byte_tokenizer import ByteTokenizer
from tests.unit.data.small import make_dataset


@pytest.mark.parametrize(("tokens", "documents"), [(1, 5), (100, 4096), (100, 3), (10**6, 4096)])
def test_ranges_cover_all_documents_and_keep_their_bounds(tokens: int, documents: int, tmp_path: Path):
    dataset = IndexedDataset(make_dataset(tmp_path))
    ranges = list(document_ranges(dataset, 0, tokens, documents))
    assert [one.first for one in ranges] == [0, *(one.last for one in ranges[:-1])]
    assert ranges[-1].last == dataset.num_documents
    for one in ranges:
        size = int(np.diff(dataset.document_offsets(one.first, one.last)).sum())
        assert one.last - one.first <= documents and (size <= tokens or one.last - one.first == 1)
        assert list(document_ranges(dataset, one.last, tokens, documents)) == ranges[ranges.index(one) + 1 :]


def test_a_block_knows_its_tokens_lengths_and_pairs(tmp_path: Path):
    write_indexed(tmp_path / "data", [[9], [], [1, 2, 3], [4], [], [5, 6], []], np.uint16)
    block = DocumentBlock(IndexedDataset(tmp_path / "data"), DocumentRange(1, 7))
    assert block.tokens.tolist() == [1, 2, 3, 4, 5, 6] and block.lengths.tolist() == [0, 3, 1, 0, 2, 0]
    assert block.document_of_token.tolist() == [1, 1, 1, 2, 4, 4]
    assert block.follows.tolist() == [1, 2, 5]
    assert block.means(np.arange(6.0)).tolist() == [0, 1, 3, 0, 4.5, 0]


def test_texts_have_no_end_of_document(tmp_path: Path):
    eod = ByteTokenizer().eod_id
    documents = [[*"天地 ab".encode(), eod], [eod], [*b"no end"], []]
    write_indexed(tmp_path / "data", documents, np.uint16)
    dataset = IndexedDataset(tmp_path / "data")
    assert DocumentBlock(dataset, DocumentRange(0, 4), ByteTokenizer()).texts == ["天地 ab", "", "no end", ""]
    with pytest.raises(AssertionError, match="no tokenizer"):
        _ = DocumentBlock(dataset, DocumentRange(0, 4)).texts


def test_what_is_no_text_is_refused_with_its_number(tmp_path: Path):
    write_indexed(tmp_path / "data", [[65], [255, 254]], np.uint16)
    with pytest.raises(DataError, match="document 1 cannot be decoded"):
        _ = DocumentBlock(IndexedDataset(tmp_path / "data"), DocumentRange(0, 2), ByteTokenizer()).texts
