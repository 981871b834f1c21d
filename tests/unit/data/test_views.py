"""Windows cut the split's tokens without gap; nothing outside the split or the vocabulary comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.order import SequentialOrder
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.views import WindowView
from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run
from tests.unit.data.small import random_documents, random_masks, write_masked

PAD = 777


@settings(deadline=None, max_examples=60)
@given(data=st.data(), seq_length=st.integers(1, 40), seed=st.integers(0, 5))
def test_samples_are_windows_of_the_splits_tokens(data, seq_length: int, seed: int, tmp_path_factory):
    documents = random_documents(seed, 30)
    prefix = tmp_path_factory.mktemp("view") / "data"
    write_indexed(prefix, documents, np.uint16)
    first = data.draw(st.integers(0, 29))
    last = data.draw(st.integers(first + 1, 30))
    text = np.concatenate(documents[first:last])
    store = IndexedDataset(prefix)
    if len(text) < seq_length + 1:
        with pytest.raises(DataError, match=f"{len(text)} tokens.*{seq_length + 1}"):
            WindowView(store, Span(first, last), seq_length)
        return
    view = WindowView(store, Span(first, last), seq_length)
    for index in range(len(view)):
        assert view[index].dtype == np.int64
        np.testing.assert_array_equal(view[index], text[index * seq_length : (index + 1) * seq_length + 1])
    # conservation: predicted tokens and the stated remainder are all there are
    assert len(view) * seq_length + view.remainder_tokens == view.num_tokens == len(text)
    assert 1 <= view.remainder_tokens <= seq_length
    for outside in (-1, len(view)):
        with pytest.raises(IndexError):
            view[outside]


def test_ids_are_checked_where_no_manifest_vouches_for_them(tmp_path):
    write_indexed(tmp_path / "data", [[1, 2, 3, 900, 5, 6, 7]], np.uint16)
    store = IndexedDataset(tmp_path / "data")
    view = WindowView(store, Span(0, 1), 2, max_vocab_size=900).ordered_by(SequentialOrder(3))
    assert view[0].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="900"):
        view[1]
    assert WindowView(store, Span(0, 1), 2, max_vocab_size=901)[1].tolist() == [3, 900, 5]


@pytest.mark.parametrize("pad_id", [None, PAD])
def test_the_mask_of_a_sample_is_that_of_its_tokens(pad_id: int | None, tmp_path):
    documents = random_documents(1, 30)
    masks = random_masks(2, documents)
    write_masked(tmp_path / "data", documents, masks)
    store, codes = IndexedDataset(tmp_path / "data"), np.concatenate(masks[4:20])
    view = WindowView(store, Span(4, 20), 16, pad_id=pad_id)
    assert view.has_loss_mask
    for index in range(len(view)):
        wanted = np.zeros(17, np.uint8)
        part = codes[index * 16 : index * 16 + 17]
        wanted[: len(part)] = part
        assert view.loss_mask(index).dtype == np.uint8
        np.testing.assert_array_equal(view.loss_mask(index), wanted)


def test_without_a_mask_in_the_data_there_is_none_in_the_view(tmp_path):
    write_indexed(tmp_path / "data", random_documents(1, 30), np.uint16)
    view = WindowView(IndexedDataset(tmp_path / "data"), Span(0, 30), 16)
    assert not view.has_loss_mask
    assert view.loss_mask(0) is None


@settings(deadline=None, max_examples=60)
@given(num_tokens=st.integers(2, 80), seq_length=st.integers(1, 30))
def test_a_padded_last_sample_predicts_every_token_but_the_first(num_tokens: int, seq_length: int, tmp_path_factory):
    prefix = tmp_path_factory.mktemp("view") / "data"
    text = np.arange(num_tokens)
    write_indexed(prefix, [text[: num_tokens // 2], text[num_tokens // 2 :]], np.uint16)
    view = WindowView(IndexedDataset(prefix), Span(0, 2), seq_length, pad_id=PAD)
    predicted = []
    for index in range(len(view)):
        sample, mask = view[index], view.loss_mask(index)
        assert sample.shape == (seq_length + 1,)
        kept = np.full(seq_length + 1, 1, np.uint8) if mask is None else mask
        assert (sample[kept == 0] == PAD).all()
        predicted += sample[1:][kept[1:] == 1].tolist()
    assert predicted == text[1:].tolist()
    assert view.num_tokens == len(predicted) + view.remainder_tokens
    assert view.has_loss_mask == ((num_tokens - 1) % seq_length != 0)


def test_one_token_predicts_nothing_padded_or_not(tmp_path):
    write_indexed(tmp_path / "data", [[5]], np.uint16)
    with pytest.raises(DataError, match="1 tokens"):
        WindowView(IndexedDataset(tmp_path / "data"), Span(0, 1), 4, pad_id=PAD)


@pytest.mark.parametrize("pad_id", [None, PAD])
def test_a_micro_batch_is_its_samples(pad_id: int | None, tmp_path):
    documents = random_documents(1, 30)
    write_masked(tmp_path / "data", documents, random_masks(2, documents))
    write_indexed(tmp_path / "plain", documents, np.uint16)
    for name in ("data", "plain"):
        view = WindowView(IndexedDataset(tmp_path / name), Span(4, 20), 16, pad_id=pad_id)
        ids = np.random.default_rng(0).integers(0, len(view), 9)
        ids[0] = len(view) - 1
        tokens, mask = view.read(ids)
        np.testing.assert_array_equal(tokens, [view[int(i)] for i in ids])
        assert (mask is None) == (not view.has_loss_mask)
        for row, i in enumerate(ids if mask is not None else []):
            learned = view.loss_mask(int(i))
            np.testing.assert_array_equal(mask[row], np.ones(17) if learned is None else learned)
        with pytest.raises(IndexError, match=f"sample {len(view)} of {len(view)}"):
            view.read(np.array([0, len(view)]))


def test_a_view_opens_without_looking_at_the_lengths(tmp_path, monkeypatch: pytest.MonkeyPatch):
    prefix = write_run(tmp_path / "x", random_records(3, 50, bad_share=0))
    wanted = WindowView(IndexedDataset(prefix), Span(0, 20), 2).read(np.arange(5))
    monkeypatch.setattr(IndexedDataset, "check_structure", lambda _: pytest.fail("the whole index was read"))
    found = WindowView(IndexedDataset(prefix), Span(0, 20), 2).read(np.arange(5))
    np.testing.assert_array_equal(found[0], wanted[0])
