"""Batches of lists, and how tokenizer files are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import batch_of_lists, fingerprint_of, read_tokenizer_file


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
