"""What a tokenizer puts around texts is found out from its answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from megatron_ext.data.rows.added_ids import ids_around_texts
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, batch_of_lists
from tests.unit.data.rows.word_tokenizer import WordTokenizer


class Surrounding(WordTokenizer):
    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return batch_of_lists([[5, 6, *self._words(text), 7] for text in texts])


class Reversing(WordTokenizer):
    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return batch_of_lists([[900 + ord(text[0])] for text in texts])


def test_the_ids_around_are_told():
    assert ids_around_texts(WordTokenizer()) == ([], [])
    tokenizer = WordTokenizer(bos="<s>")
    assert ids_around_texts(tokenizer) == ([tokenizer.bos_id], [])
    assert ids_around_texts(Surrounding()) == ([5, 6], [7])


def test_anything_else_is_refused():
    with pytest.raises(TokenizerError, match="another way"):
        ids_around_texts(Reversing())
