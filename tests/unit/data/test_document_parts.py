"""Every token of a sample is found in its document, and every view says where its samples' tokens stand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.datasets import DatasetRequest, build_datasets
from megatron_ext.data.document_parts import document_at, document_parts, input_path
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.store.manifest import Counts, InputFacts
from tests.unit.data.small import TOKENIZER, data_config, make_dataset


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), data=st.data())
def test_parts_are_the_tokens_and_name_their_documents(tmp_path_factory, lengths: list[int], data):
    lengths = [*lengths, 3]
    prefix = tmp_path_factory.getbasetemp() / "parts"
    write_indexed(prefix, [np.full(length, i) for i, length in enumerate(lengths)], np.uint16)
    store = IndexedDataset(prefix)
    begin = data.draw(st.integers(0, store.num_tokens))
    end = data.draw(st.integers(begin, store.num_tokens))
    parts = list(document_parts(store, begin, end))
    assert [p.document for p in parts for _ in range(p.first, p.last)] == store.tokens[begin:end].tolist()
    for part in parts:
        assert 0 <= part.first < part.last <= part.length == lengths[part.document]
        assert document_at(store, begin) == parts[0].document


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset_order": "megatron"},
        {"pad_last_sample": True},
        {"dataset_packing": "documents"},
        {"blend": True},
    ],
    ids=str,
)
def test_every_view_says_where_its_tokens_stand(settings: dict, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    paths = ["3", prefix, "1", make_dataset(tmp_path, "other", seed=1)] if settings.pop("blend", False) else [prefix]
    config = data_config(data_path=paths, **settings)
    view = build_datasets(DatasetRequest(config, TOKENIZER, 31, (60, 0, 0), 1)).train
    for sample_id in view.sample_ids(0, 60).tolist():
        found = np.concatenate([r.store.tokens[r.begin : r.end] for r in view.token_ranges(sample_id)])
        assert np.array_equal(view[sample_id][: len(found)], found)
        assert len(found) == 32 or settings.get("dataset_packing") or settings.get("pad_last_sample")


def manifest(records: list[int], read: int, documents: int) -> SimpleNamespace:
    inputs = [InputFacts(f"{i}.jsonl", None, count) for i, count in enumerate(records)]
    return SimpleNamespace(inputs=inputs, records=Counts(read, documents, read - documents, 0), documents=documents)


def test_the_input_file_is_told_where_it_can_be():
    assert [input_path(manifest([2, 0, 3], 5, 5), document) for document in range(5)] == ["0.jsonl"] * 2 + [
        "2.jsonl"
    ] * 3
    assert input_path(manifest([5], 5, 4), 3) == "0.jsonl"
    assert input_path(manifest([2, 3], 5, 4), 3) is None  # a record was left out, and nothing says of which file
    assert input_path(None, 0) is None
