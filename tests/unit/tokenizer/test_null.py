"""NullTokenizer: the text is the ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.null import NullTokenizer


@given(st.lists(st.integers(0, 100)))
def test_encoding_and_decoding_are_inverse(ids: list[int]):
    tokenizer = NullTokenizer(100)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_the_end_of_document_id_comes_after_the_plain_ids():
    tokenizer = NullTokenizer(100)
    assert (tokenizer.eod_id, tokenizer.vocab_size) == (100, 101)
    assert tokenizer.fingerprint != NullTokenizer(101).fingerprint


@pytest.mark.parametrize("text", ["101", "-1", "1.5", "x", "1 2 １", "9" * 30])
def test_words_that_are_no_ids_are_refused(text: str):
    with pytest.raises(TokenizerError, match="not a token id"):
        NullTokenizer(100).encode(text)


def test_ids_outside_the_vocabulary_are_not_decoded():
    with pytest.raises(TokenizerError):
        NullTokenizer(100).decode([101])
