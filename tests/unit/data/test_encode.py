"""A block of lines gives its documents in order, each record in exactly one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.encode import BlockEncoder, EncodeSettings
from megatron_ext.data.readers import LineBlock
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, batch_of_lists
from megatron_ext.tokenizer.null import NullTokenizer

TOKENIZER = NullTokenizer(100)
SETTINGS = EncodeSettings(("text",), True, "uint16", "NullTokenizer", None, 100, TOKENIZER.fingerprint)


def block(*lines: bytes) -> LineBlock:
    return LineBlock(0, 11, b"\n".join(lines) + b"\n", len(lines))


def test_documents_keep_their_order_and_end_with_the_end_of_document_id():
    encoded = BlockEncoder(SETTINGS, TOKENIZER)(block(b'{"text": "1 2"}', b'{"text": ""}', b"x", b'{"text": "3"}'))
    documents = encoded.documents[0]
    assert np.frombuffer(documents.token_bytes, np.uint16).tolist() == [1, 2, 100, 3, 100]
    assert documents.lengths.tolist() == [3, 2]
    assert (documents.largest_id, documents.num_empty, encoded.num_records) == (100, 1, 4)
    assert [(bad.line, bad.reason) for bad in encoded.bad] == [(13, "broken JSON")]


def test_without_append_eod_nothing_is_added():
    settings = dataclasses.replace(SETTINGS, append_eod=False, dtype="int32")
    documents = BlockEncoder(settings, TOKENIZER)(block(b'{"text": "1 2"}', b'{"text": " "}')).documents[0]
    assert np.frombuffer(documents.token_bytes, np.int32).tolist() == [1, 2]
    assert (documents.num_empty, documents.largest_id) == (1, 2)


def test_a_record_that_is_bad_in_one_key_is_bad_in_all():
    settings = dataclasses.replace(SETTINGS, keys=("a", "b"))
    encoded = BlockEncoder(settings, TOKENIZER)(block(b'{"a": "1", "b": "2"}', b'{"a": "1"}', b'{"a": "3", "b": ""}'))
    assert [documents.lengths.tolist() for documents in encoded.documents] == [[2, 2], [2]]
    assert [documents.num_empty for documents in encoded.documents] == [0, 1]
    assert [bad.reason for bad in encoded.bad] == ["missing key"]


def test_a_text_the_tokenizer_refuses_is_one_bad_record():
    encoded = BlockEncoder(SETTINGS, TOKENIZER)(block(b'{"text": "1 x"}', b'{"text": "2"}', b'{"text": "101"}'))
    assert [(bad.line, bad.reason) for bad in encoded.bad] == [(11, "not tokenizable"), (13, "not tokenizable")]
    assert encoded.documents[0].lengths.tolist() == [2]


class BrokenTokenizer(NullTokenizer):
    def __init__(self, index: int) -> None:
        super().__init__(100)
        self.index = index

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return batch_of_lists([[self.index] for _ in texts])


@pytest.mark.parametrize("index", [101, -1, 70000])
def test_an_id_outside_the_vocabulary_stops_the_run_and_is_never_wrapped(index: int):
    settings = dataclasses.replace(SETTINGS, tokenizer_type="HuggingFaceTokenizer")
    with pytest.raises(TokenizerError, match=str(index)):
        BlockEncoder(settings, BrokenTokenizer(index))(block(b'{"text": "1"}'))


LINES = st.sampled_from([b"", b"{", b'{"text": ""}', b'{"text": "1 2 3"}', b'{"text": 1}', b'{"text": "x"}', b"\xff"])


@settings(deadline=None)
@given(st.lists(LINES, min_size=1, max_size=30))
def test_records_read_are_written_or_bad_or_empty(lines: list[bytes]):
    encoded = BlockEncoder(SETTINGS, TOKENIZER)(block(*lines))
    documents = encoded.documents[0]
    assert encoded.num_records == len(lines)
    assert len(lines) == len(documents.lengths) + documents.num_empty + len(encoded.bad)
    assert len(documents.token_bytes) == 2 * documents.lengths.sum()
