"""One document is one sample: whole, padded, learned only where it is itself; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.document_samples import DocumentView
from megatron_ext.data.order import PermutedOrder
from megatron_ext.data.order_file import FileOrder, write_order_file
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.views import WindowView
from megatron_ext.errors import DataError
from tests.unit.data.small import random_documents, random_masks, write_masked

PAD = 777


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), masked=st.booleans(), first=st.integers(0, 5))
def test_every_document_is_one_padded_sample(lengths: list[int], masked: bool, first: int, tmp_path_factory):
    lengths = [*([3] * first), 2, *lengths]
    documents = [np.arange(length) + 10 * index for index, length in enumerate(lengths)]
    masks = random_masks(0, documents)
    prefix = tmp_path_factory.mktemp("documents") / "data"
    if masked:
        write_masked(prefix, documents, masks)
    else:
        write_indexed(prefix, documents, np.uint16)
    view = DocumentView(IndexedDataset(prefix), Span(first, len(lengths)), 8, PAD)
    predicted = 0
    assert len(view) == len(lengths) - first
    for index in range(len(view)):
        document, sample, mask = documents[first + index], view[index], view.loss_mask(index)
        length = len(document)
        assert sample.dtype == np.int64
        assert sample.tolist() == [*document.tolist(), *[PAD] * (9 - length)]
        codes = masks[first + index].tolist() if masked else [1] * length
        assert (mask.tolist() if mask is not None else [1] * 9) == [*codes, *[0] * (9 - length)]
        assert mask is None or view.has_loss_mask
        predicted += max(0, length - 1)
    # conservation: what is predicted, and the first token of every document that has one
    assert predicted + view.remainder_tokens == view.num_tokens == sum(lengths[first:])
    for outside in (-1, len(view)):
        with pytest.raises(IndexError):
            view[outside]


def test_blocks_that_fill_their_samples_are_read_without_masks(tmp_path: Path):
    blocks = np.random.default_rng(0).integers(0, 900, (5, 9))
    write_indexed(tmp_path / "data", blocks, np.uint16)
    view = DocumentView(IndexedDataset(tmp_path / "data"), Span(0, 5), 8, PAD)
    assert not view.has_loss_mask and view.loss_mask(0) is None
    np.testing.assert_array_equal(np.stack([view[index] for index in range(5)]), blocks)


def test_documents_that_do_not_fit_are_refused_at_open_with_numbers(tmp_path: Path):
    write_indexed(tmp_path / "data", [np.arange(n) for n in (30, 9, 10, 12, 9)], np.uint16)
    store = IndexedDataset(tmp_path / "data")
    with pytest.raises(DataError, match=r"2 of 4 documents.*longest has 12 tokens.*--seq-length 8 \+ 1"):
        DocumentView(store, Span(1, 5), 8, PAD)
    assert len(DocumentView(store, Span(1, 2), 8, PAD)) == 1


def test_documents_without_anything_to_predict_are_told_and_alone_refused(tmp_path: Path, capsys):
    write_indexed(tmp_path / "data", [[1], [], [1, 2], [3]], np.uint16)
    store = IndexedDataset(tmp_path / "data")
    view = DocumentView(store, Span(0, 3), 8, PAD)
    assert "2 of 3 documents have less than 2 tokens" in capsys.readouterr().err
    assert view.loss_mask(1).tolist() == [0] * 9
    with pytest.raises(DataError, match="no document"):
        DocumentView(store, Span(3, 4), 8, PAD)


def test_ids_are_checked_before_pads_are_added(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1, 2], [5, 900]], np.uint16)
    view = DocumentView(IndexedDataset(tmp_path / "data"), Span(0, 2), 8, 901, max_vocab_size=900)
    assert view[0].tolist() == [1, 2, *[901] * 7]
    with pytest.raises(DataError, match="900"):
        view[1]


def test_an_order_is_one_of_documents_and_its_file_does_not_fit_windows(tmp_path: Path):
    write_indexed(tmp_path / "data", random_documents(3, 20, largest_length=9), np.uint16)
    store = IndexedDataset(tmp_path / "data")
    view = DocumentView(store, Span(0, 20), 8, PAD)
    ids = view.ordered_by(PermutedOrder(len(view), "key")).sample_ids(0, 20)
    assert sorted(ids) == list(range(20))
    write_order_file(tmp_path / "order", ids[::-1], view.target, {})
    assert view.ordered_by(FileOrder(tmp_path / "order", view.target)).sample_ids(0, 20).tolist() == ids[::-1].tolist()
    windows = WindowView(store, Span(0, 20), 8)
    with pytest.raises(DataError, match="made for other data"):
        FileOrder(tmp_path / "order", windows.target)
