"""The counts are those of the data, computed in any number of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.store.dataset_summary import LengthTable, document_lengths, summary_rows
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from tests.unit.data.described import random_records, write_run
from tests.unit.data.small import make_dataset


def rows_of(prefix: str) -> dict[str, str]:
    dataset = IndexedDataset(prefix)
    return dict(summary_rows(dataset, document_lengths(dataset)))


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=60), share=st.floats(0, 1))
def test_quantiles_are_numpys(lengths: list[int], share: float):
    table = LengthTable(*np.unique(np.array(lengths), return_counts=True))
    assert table.quantile(share) == np.quantile(lengths, share, method="inverted_cdf")
    assert table.mean == pytest.approx(np.mean(lengths))
    assert (table.num_documents, table.num_tokens) == (len(lengths), sum(lengths))


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_the_length_table_counts_documents_in_blocks(block: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("megatron_ext.data.store.dataset_summary._DOCUMENTS", block)
    dataset = IndexedDataset(make_dataset(tmp_path))
    table = document_lengths(dataset)
    wanted, counts = np.unique(dataset.lengths, return_counts=True)
    assert table.lengths.tolist() == wanted.tolist() and table.documents.tolist() == counts.tolist()


def test_a_document_of_several_sequences_is_as_long_as_all_of_them(tmp_path: Path):
    write_indexed(tmp_path / "data", [[1], [2, 3], [4]], np.uint16)
    path = tmp_path / "data.idx"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) - 32] + np.array([0, 2, 2, 3], "<i8").tobytes())
    assert document_lengths(IndexedDataset(tmp_path / "data")).lengths.tolist() == [0, 1, 3]


def test_everything_that_the_manifest_says_is_shown(tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 60), shard=[1, 4])
    rows = rows_of(prefix)
    dataset = IndexedDataset(prefix)
    learned = np.count_nonzero(dataset.loss_mask)
    share = f"{learned:,} ({100 * learned / dataset.num_tokens:.1f} %)"
    assert rows["learned tokens"] == f"{share}, {np.count_nonzero(dataset.loss_mask == 2):,} of them as end of document"
    assert rows["records"].startswith("60 read = ") and "broken JSON" in rows["quarantined"]
    assert rows["shard"] == "1 of 4" and "NullTokenizer, 1,001 ids, eod 1000" in rows["tokenizer"]
    assert rows["document length"].startswith(f"min {dataset.lengths.min()}, median ")
    assert "b.jsonl" in rows["input"]


def test_many_inputs_are_cut_short(tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 9), inputs=[f"{i}.jsonl" for i in range(20)])
    assert rows_of(prefix)["input"] == "and 15 more files"


def test_a_dataset_without_manifest_or_without_documents_has_counts_too(tmp_path: Path):
    rows = rows_of(make_dataset(tmp_path))
    assert rows["manifest"] == "none" and rows["learned tokens"] == "all (no loss mask)"
    write_indexed(tmp_path / "empty", [], np.uint16)
    assert rows_of(f"{tmp_path}/empty")["document length"] == "-"
    write_indexed(tmp_path / "hollow", [[]], np.uint16)
    assert rows_of(f"{tmp_path}/hollow")["document length"].startswith("min 0, median 0")
