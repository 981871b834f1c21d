"""Windows cut the split's tokens without gap; nothing outside the split or the vocabulary comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.indexed import IndexedDataset
from megatron_ext.data.indexed_writer import write_indexed
from megatron_ext.data.order import SequentialOrder
from megatron_ext.data.split import Span
from megatron_ext.data.views import WindowView
from megatron_ext.errors import DataError
from tests.unit.data.small import random_documents


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
