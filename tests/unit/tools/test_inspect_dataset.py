"""Counts, documents and a picture of any dataset, with or without manifest, mask or tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.store.dataset_summary import LengthTable
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.errors import DataError, TokenizerError
from tests.unit.data.described import Record, random_records, write_run
from tests.unit.data.small import make_dataset
from tools import inspect_dataset


def output(capsys, *words: object) -> str:
    inspect_dataset.main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_first_documents_are_decoded_with_their_mask(tmp_path: Path, capsys):
    prefix = write_run(tmp_path / "x", [Record("a", [3, 4, 5])] * 5)  # the mask is the id modulo 3
    out = output(capsys, f"{prefix}.idx")
    assert "documents        5" in out and "marks: [[learned]], not learned" in out
    assert out.count("--- document") == 3
    assert "--- document 0, 4 tokens\n3[[ 4]]{{ 5}}[[<eod>]]\n" in out


def test_documents_are_chosen_by_number_from_either_end(tmp_path: Path, capsys):
    prefix = write_run(tmp_path / "x", [Record("a", [i]) for i in range(9)], with_mask=False)
    out = output(capsys, prefix, "--documents", 4, -1, "--ids")
    assert "--- document 4, 2 tokens\n4<eod>\n4 1000\n--- document 8" in out
    assert "--- document" not in output(capsys, prefix, "--documents")
    with pytest.raises(DataError, match=r"no document 9.*has 9 documents"):
        output(capsys, prefix, "--documents", 9)


def test_without_a_manifest_ids_are_shown_until_a_tokenizer_is_named(tmp_path: Path, capsys):
    write_indexed(tmp_path / "data", [[1, 0, 2]], np.uint16)
    out = output(capsys, tmp_path / "data")
    assert "token ids only: the dataset has no manifest" in out and "\n1 0 2\n" in out
    out = output(capsys, tmp_path / "data", "--tokenizer-type", "NullTokenizer", "--vocab-size", 2)
    assert "\n1 0<eod>\n" in out and "token ids only" not in out


def test_a_wrong_tokenizer_is_refused(tmp_path: Path, capsys):
    prefix = write_run(tmp_path / "x", random_records(0, 9))
    with pytest.raises(TokenizerError, match="fingerprint"):
        output(capsys, prefix, "--vocab-size", 7)


@pytest.mark.parametrize("largest", [0, 1, 30, 3000])
def test_the_picture_is_a_png_for_any_spread_of_lengths(largest: int, tmp_path: Path, capsys):
    lengths = sorted({1, largest, largest // 2})
    write_indexed(tmp_path / "data", [[1] * length for length in lengths], np.uint16)
    out = output(capsys, tmp_path / "data", "--documents", "--plot", tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert f"lengths of {len(lengths)} documents" in out


def test_what_cannot_be_drawn_or_written_is_refused(tmp_path: Path, capsys):
    with pytest.raises(DataError, match="cannot be written"):
        output(capsys, make_dataset(tmp_path), "--documents", "--plot", tmp_path / "absent" / "x.png")
    write_indexed(tmp_path / "empty", [], np.uint16)
    with pytest.raises(DataError, match="no document with a token"):
        output(capsys, tmp_path / "empty", "--plot", tmp_path / "x.png")


def test_a_pattern_of_several_datasets_is_refused(tmp_path: Path, capsys):
    make_dataset(tmp_path, "a")
    make_dataset(tmp_path, "b")
    with pytest.raises(DataError, match="matches 2 datasets"):
        output(capsys, f"{tmp_path}/*.idx")


@given(lengths=st.sets(st.integers(1, 10**7), min_size=1, max_size=30))
def test_every_length_lies_in_a_bin_that_holds_a_whole_number(lengths: set[int]):
    values = np.array(sorted(lengths))
    edges, is_log = inspect_dataset.bin_edges(LengthTable(values, np.ones_like(values)))
    assert np.histogram(values, edges)[0].sum() == len(values)
    assert np.all(np.diff(edges) >= 1) and np.all(edges % 1 == 0.5)
    assert is_log == (values[-1] > 20 * values[0])


def test_the_mask_may_be_absent_in_a_dataset_with_manifest(tmp_path: Path, capsys):
    prefix = write_run(tmp_path / "x", random_records(0, 9), with_mask=False)
    assert IndexedDataset(prefix).loss_mask is None
    out = output(capsys, prefix)
    assert "all (no loss mask)" in out and "marks:" not in out
