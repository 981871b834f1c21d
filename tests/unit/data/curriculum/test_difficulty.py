"""The difficulty of a sample is the mean score of the tokens it reads, token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.curriculum.difficulty import sample_difficulties
from megatron_ext.data.document_samples import DocumentView
from megatron_ext.data.order_file import OrderTarget
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.views import WindowView


def token_by_token(store: IndexedDataset, target: OrderTarget, scores: np.ndarray) -> np.ndarray:
    """Every token of the dataset gets its document's score; then windows are cut."""
    of_token = np.repeat(scores, np.diff(store.document_offsets(0, store.num_documents))).astype(np.float64)
    first, last = store.token_offset(target.first_sequence), store.token_offset(target.last_sequence)
    windows = [
        of_token[begin : min(begin + target.seq_length, last)]
        for begin in range(first, first + target.num_samples * target.seq_length, target.seq_length)
    ]
    return np.array([window.mean() for window in windows])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=25),
    seq_length=st.integers(1, 12),
    pad=st.booleans(),
    samples=st.integers(1, 5),
    documents=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_windows_match_the_naive_mean_for_any_block(
    tmp_path_factory, lengths: list[int], seq_length: int, pad: bool, samples: int, documents: int, seed: int
):
    lengths = [*lengths, 14]
    prefix = tmp_path_factory.getbasetemp() / "difficulty"
    write_indexed(prefix, [np.ones(length, np.int64) for length in lengths], np.uint16)
    store, random = IndexedDataset(prefix), np.random.default_rng(seed)
    scores = random.normal(size=len(lengths)).astype(np.float32)
    first = int(random.integers(0, len(lengths)))
    target = WindowView(store, Span(first, len(lengths)), seq_length, pad_id=0 if pad else None).target
    whole = np.concatenate(list(sample_difficulties(store, target, scores)))
    assert whole.dtype == np.float32 and len(whole) == target.num_samples
    np.testing.assert_allclose(whole, token_by_token(store, target, scores), rtol=1e-5, atol=1e-6)
    pieces = np.concatenate(list(sample_difficulties(store, target, scores, samples, documents)))
    assert np.array_equal(pieces, whole)  # to the last bit, or the order would depend on the size of a block


@pytest.mark.parametrize("samples", [1, 3, 100])
def test_a_document_as_sample_has_its_own_score(samples: int, tmp_path: Path):
    write_indexed(tmp_path / "data", [[1, 2]] * 10, np.uint16)
    store = IndexedDataset(tmp_path / "data")
    target = DocumentView(store, Span(2, 9), 4, pad_id=0).target
    found = np.concatenate(list(sample_difficulties(store, target, np.arange(10, dtype=np.float32), samples)))
    assert found.tolist() == list(range(2, 9))


def test_a_document_of_several_sequences_gives_all_of_them_its_score(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1, 2]] * 6, np.uint16)
    store = IndexedDataset(tmp_path / "data")
    store.document_boundaries = np.array([0, 0, 2, 5, 5, 6, 6])
    target = DocumentView(store, Span(1, 6), 4, pad_id=0).target
    for samples in (1, 2, 100):
        found = np.concatenate(list(sample_difficulties(store, target, np.arange(6, dtype=np.float32), samples)))
        assert found.tolist() == [1, 2, 2, 2, 4]
