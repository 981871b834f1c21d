"""Joined datasets read like one; what cannot stand in one block is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError
from tests.unit.data.packing.finished import finished

DOCUMENTS = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=5)


@settings(max_examples=20)
@given(st.lists(DOCUMENTS, min_size=1, max_size=4).filter(lambda sets: any(any(d) for d in sets)), st.data())
def test_every_range_is_that_of_all_documents_end_to_end(tmp_path_factory, sets: list, data: st.DataObject):
    folder = tmp_path_factory.mktemp("sets")
    joined = JoinedDatasets([finished(folder / f"d{place}", documents) for place, documents in enumerate(sets)])
    flat = [token for documents in sets for document in documents for token in document]
    rows = [document for documents in sets for document in documents]
    assert joined.num_documents == len(rows)
    assert np.diff(joined.offsets).tolist() == [len(row) for row in rows]
    assert joined.documents().tolist() == [number for number, row in enumerate(rows) if row]
    start = data.draw(st.integers(0, len(flat)))
    end = data.draw(st.integers(start, len(flat)))
    assert joined.tokens(start, end).tolist() == flat[start:end]
    assert joined.num_beginning_otherwise(0) == sum(row[0] != 0 for row in rows if row)
    places = [joined.place_of(number) for number in range(len(rows))]
    assert places == [(place, number) for place, documents in enumerate(sets) for number in range(len(documents))]


def test_a_dataset_without_mask_is_learned_whole(tmp_path: Path):
    with_mask = finished(tmp_path / "a", [[5, 6], [7]], [[0, 2], [1]])
    joined = JoinedDatasets([with_mask, finished(tmp_path / "b", [[8, 9]])])
    tokens, mask = np.empty(4, joined.dtype), np.empty(4, np.uint8)
    joined.copy(1, 5, tokens, mask)
    assert (tokens.tolist(), mask.tolist()) == ([6, 7, 8, 9], [2, 1, 1, 1])
    assert joined.has_loss_mask
    assert not JoinedDatasets([str(tmp_path / "b")]).has_loss_mask


def test_another_tokenizer_is_refused(tmp_path: Path):
    first = finished(tmp_path / "a", [[5]])
    with pytest.raises(DataError, match=r"b has another tokenizer than .*a: other"):
        JoinedDatasets([first, finished(tmp_path / "b", [[5]], fingerprint="other")])


def test_what_cannot_be_packed_is_refused(tmp_path: Path):
    good = finished(tmp_path / "a", [[5]])
    with pytest.raises(DataError, match=r"names .* twice"):
        JoinedDatasets([good, f"{tmp_path}/./a"])
    write_indexed(tmp_path / "bare", [[5]], np.uint16)
    with pytest.raises(DataError, match="no manifest"):
        JoinedDatasets([str(tmp_path / "bare")])
    with pytest.raises(DataError, match=r"packed already \(--method stream\)"):
        JoinedDatasets([finished(tmp_path / "packed", [[5]], rows={"packing": "stream"})])
    with pytest.raises(DataError, match="no token to pack"):
        JoinedDatasets([finished(tmp_path / "empty", [[]])])
    with pytest.raises(DataError, match=r"missing\.idx cannot be read"):
        JoinedDatasets([str(tmp_path / "missing")])


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path):
    joined = JoinedDatasets([finished(tmp_path / "a", [[5]])])
    joined.require_id("--pad-id", 59999)
    with pytest.raises(DataError, match=r"--pad-id 60000 is not an id.*0 to 59999"):
        joined.require_id("--pad-id", 60000)
