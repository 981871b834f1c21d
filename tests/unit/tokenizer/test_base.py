"""Batches of lists, and how tokenizer files are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import batch_of_lists, fingerprint_of, read_tokenizer_file, surrounded
from megatron_ext.tokenizer.null import NullTokenizer


def test_a_batch_holds_every_list_in_order():
    batch = batch_of_lists([[1, 2], [], [3]])
    assert batch.ids.dtype == np.int32
    assert batch.ids.tolist() == [1, 2, 3]
    assert batch.lengths.tolist() == [2, 0, 1]


def test_the_fingerprint_is_the_sha256_of_the_content():
    assert fingerprint_of(b"abc") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("kind", ["missing", "folder", "empty"])
def test_unreadable_files_are_refused_with_their_name(tmp_path: Path, kind: str):
    path = tmp_path / "tokenizer.model"
    if kind == "folder":
        path.mkdir()
    if kind == "empty":
        path.touch()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        read_tokenizer_file(path)


@given(
    rows=st.lists(st.lists(st.integers(10, 99), max_size=3), max_size=6),
    prefix=st.lists(st.integers(0, 9), max_size=2),
    suffix=st.lists(st.integers(0, 9), max_size=2),
    also_empty=st.booleans(),
)
def test_texts_are_surrounded_one_by_one(rows: list, prefix: list, suffix: list, also_empty: bool):
    batch = surrounded(batch_of_lists(rows), prefix, suffix, also_empty)
    wanted = [[*prefix, *row, *suffix] if row or also_empty else [] for row in rows]
    assert batch.ids.tolist() == [index for row in wanted for index in row]
    assert batch.lengths.tolist() == [len(row) for row in wanted]
    assert batch.ids.dtype == np.int32


def test_what_a_tokenizer_offers_when_it_adds_nothing():
    tokenizer = NullTokenizer(9)
    for batch in (tokenizer.encode_plain_batch(["1 2"]), tokenizer.encode_reference_batch(["1 2"])):
        assert batch.ids.tolist() == [1, 2]
    assert tokenizer.token_id("1") is None
