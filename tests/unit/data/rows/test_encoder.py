"""A block of records gives its documents in order, each record in exactly one place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.encoder import BlockEncoder, EncodedBlock
from megatron_ext.data.rows.settings import EncodeSettings, FimSettings, RowSettings
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer, batch_of_lists
from megatron_ext.tokenizer.null import NullTokenizer
from tests.unit.data.rows.word_tokenizer import Records, WordTokenizer, documents, encode, why_refused

NULL = NullTokenizer(100)
TEXT = RowSettings("text", append_eod=True)
BROKEN = RecordError("broken JSON", "what the parser said")


def numbers(block: EncodedBlock, output: int = 0) -> list[int]:
    return np.frombuffer(block.documents[output].token_bytes, np.uint16).tolist()


def test_documents_keep_their_order_and_end_with_the_end_of_document_id():
    settings = EncodeSettings(TEXT, "uint16")
    records = Records({"text": "1 2"}, {"text": ""}, BROKEN, {"text": "3"}, first_record=11)
    block = BlockEncoder(settings, NULL)(records)
    assert numbers(block) == [1, 2, 100, 3, 100]
    found = block.documents[0]
    assert (found.lengths.tolist(), found.largest_id, found.num_empty, found.mask_bytes) == ([3, 2], 100, 1, None)
    assert block.num_records == 4
    (bad,) = block.bad
    assert (bad.file_index, bad.line, bad.reason, bad.detail) == (2, 13, BROKEN.reason, BROKEN.detail)
    assert bad.raw == records.raw(2)


def test_without_append_eod_nothing_is_added():
    settings = EncodeSettings(RowSettings(), "int32")
    found = BlockEncoder(settings, NULL)(Records({"text": "1 2"}, {"text": " "})).documents[0]
    assert np.frombuffer(found.token_bytes, np.int32).tolist() == [1, 2]
    assert (found.num_empty, found.largest_id) == (1, 2)


def test_a_record_that_is_bad_in_one_key_is_bad_in_all():
    rows = RowSettings("text", json_keys=("a", "b"), append_eod=True)
    block = encode(NULL, rows, {"a": "1", "b": "2"}, {"a": "1"}, {"a": "3", "b": ""}, {"a": "x", "b": "5"})
    assert [found.lengths.tolist() for found in block.documents] == [[2, 2], [2]]
    assert [found.num_empty for found in block.documents] == [0, 1]
    assert [(bad.line, bad.reason) for bad in block.bad] == [(2, "missing key"), (4, "not tokenizable")]


@pytest.mark.parametrize("rows", [TEXT, RowSettings("completion", fields=(("completion", "text"),))])
def test_a_text_the_tokenizer_refuses_is_one_bad_record(rows: RowSettings):
    block = encode(NULL, rows, {"text": "1 x"}, {"text": "2"}, BROKEN, {"text": "101"})
    reasons = [(bad.line, bad.reason) for bad in block.bad]
    assert reasons == [(1, "not tokenizable"), (3, "broken JSON"), (4, "not tokenizable")]
    assert numbers(block)[0] == 2
    assert len(block.documents[0].lengths) == 1


class BrokenTokenizer(NullTokenizer):
    def __init__(self, index: int) -> None:
        super().__init__(100)
        self.index = index

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return batch_of_lists([[self.index] for _ in texts])


@pytest.mark.parametrize("index", [101, -1, 70000])
def test_an_id_outside_the_vocabulary_stops_the_run_and_is_never_wrapped(index: int):
    with pytest.raises(TokenizerError, match=str(index)):
        encode(BrokenTokenizer(index), TEXT, {"text": "1"})


class RefusingTokenizer(NullTokenizer):
    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        if len(texts) > 1:
            raise TokenizerError("no more than one")
        return super().encode_batch(texts)


def test_an_error_of_the_tokenizer_that_no_single_record_causes_is_not_swallowed():
    with pytest.raises(TokenizerError, match="no more than one"):
        encode(RefusingTokenizer(9), TEXT, {"text": "1"}, {"text": "2"})


def test_texts_are_encoded_in_one_call():
    tokenizer = WordTokenizer()
    encode(tokenizer, TEXT, *[{"text": "a b"}] * 50)
    assert tokenizer.num_batches == 1


def test_over_long_texts_are_cut_or_refused():
    tokenizer = WordTokenizer()
    records = [{"text": "a b"}, {"text": ""}, BROKEN, {"text": "a b c"}, {"text": "a"}]
    cut = dataclasses.replace(TEXT, max_length=4)
    block = encode(tokenizer, cut, *records)
    words = [[word for word, _ in document] for document in documents(tokenizer, block)]
    assert words == [["a", " ", "b", "</s>"], ["a", " ", "b", "</s>"], ["a", "</s>"]]
    assert (block.documents[0].num_empty, [bad.line for bad in block.bad]) == (1, [3])
    block = encode(tokenizer, dataclasses.replace(cut, over_long="drop"), *records)
    assert [(bad.line, bad.reason, bad.detail) for bad in block.bad] == [
        (3, "broken JSON", BROKEN.detail),
        (4, "too long", "6 tokens, but --max-length is 4"),
    ]
    assert [len(document) for document in documents(tokenizer, block)] == [4, 2]
    assert block.documents[0].num_empty == 1


def test_a_cut_conversation_ends_with_a_learned_end():
    rows = RowSettings("completion", max_length=4)
    tokenizer = WordTokenizer()
    block = encode(tokenizer, rows, {"context": "a", "completion": "b c d"})
    assert documents(tokenizer, block) == [[("a", 0), ("b", 1), (" ", 1), ("</s>", 1)]]


def test_a_row_whose_answer_is_cut_away_is_refused_and_not_taught_to_end_its_prompt():
    rows = RowSettings("completion", max_length=3)
    reason, detail = why_refused(WordTokenizer(), rows, {"context": "a b c", "completion": "d"})
    assert (reason, detail) == ("nothing to learn", "none of its first 3 tokens is learned")


class DeafTokenizer(WordTokenizer):
    """Finds no token in "zz"."""

    def encode_plain_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return super().encode_plain_batch([text.replace("zz", "") for text in texts])


def test_a_row_none_of_whose_tokens_is_learned_is_refused():
    reason, detail = why_refused(DeafTokenizer(), RowSettings("completion"), {"context": "a", "completion": "zz"})
    assert (reason, detail) == ("nothing to learn", "none of its 1 tokens is learned")


def test_missing_special_tokens_are_refused_before_any_record_is_read():
    with pytest.raises(TokenizerError, match="im_start"):
        encode(WordTokenizer(), RowSettings("conversations"))
    with pytest.raises(TokenizerError, match="fim_prefix"):
        encode(WordTokenizer(), RowSettings("text", fim=FimSettings(rate=0.5)))


def test_the_end_of_document_can_be_another_token():
    tokenizer = WordTokenizer("<end>")
    rows = RowSettings("text", append_eod=True, special_tokens=(("eos", "<end>"),))
    assert documents(tokenizer, encode(tokenizer, rows, {"text": "a"})) == [[("a", 1), ("<end>", 1)]]


def test_bytes_of_the_mask_follow_the_documents_that_stay():
    tokenizer = WordTokenizer()
    records = [{"context": "x", "completion": c} for c in ("a", "", "b c")]
    block = encode(tokenizer, RowSettings("completion"), *records, {"context": "", "completion": ""})
    assert documents(tokenizer, block) == [[("x", 0), ("a", 1)], [("x", 0), ("b", 1), (" ", 1), ("c", 1)]]
    assert block.documents[0].mask_bytes == bytes([0, 1, 0, 1, 1, 1])


VALUES = st.none() | st.integers(0, 3) | st.sampled_from(["", " ", "a", "a b c", "<sep>", "a<sep>b", "文字 x"])
RECORDS = st.lists(
    st.just(BROKEN)
    | st.sampled_from(["", "a", "a<sep>b c d e"])
    | st.dictionaries(st.sampled_from(["text", "context", "completion", "instruction", "output", "input"]), VALUES),
    min_size=1,
    max_size=12,
)
SPECIALS = ("<sep>", "<_user>", "<_bot>", "<_end>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>")


@given(
    RECORDS,
    st.sampled_from(["text", "completion", "instruction", "input-output", "yuan"]),
    st.none() | st.integers(2, 6),
    st.sampled_from(["cut", "drop"]),
    st.booleans(),
)
def test_records_read_are_written_or_empty_or_bad(
    records: list[Any], form: str, limit: int | None, over_long: str, append_eod: bool
):
    fim = FimSettings(rate=0.5) if form == "text" else FimSettings()
    over_long = "cut" if limit is None else over_long
    rows = RowSettings(form, append_eod=append_eod, max_length=limit, over_long=over_long, fim=fim)
    tokenizer = WordTokenizer(*SPECIALS)
    block = encode(tokenizer, rows, *records)
    (found,) = block.documents
    assert block.num_records == len(records) == len(found.lengths) + found.num_empty + len(block.bad)
    assert len(found.token_bytes) == 2 * found.lengths.sum()
    assert [bad.line for bad in block.bad] == sorted({bad.line for bad in block.bad})
    assert all(any(code for _, code in document) for document in documents(tokenizer, block))
    assert limit is None or all(length <= limit for length in found.lengths)


@given(RECORDS, st.integers(0, 12), st.sampled_from(["text", "completion", "yuan"]))
def test_a_block_cut_in_two_gives_the_same_documents(records: list[Any], place: int, form: str):
    tokenizer: Tokenizer = WordTokenizer(*SPECIALS)
    rows = RowSettings(form, append_eod=True, max_length=5)
    whole, first, second = (encode(tokenizer, rows, *part) for part in (records, records[:place], records[place:]))
    assert whole.documents[0].token_bytes == first.documents[0].token_bytes + second.documents[0].token_bytes
    halves = (first.documents[0].mask_bytes, second.documents[0].mask_bytes)
    assert whole.documents[0].mask_bytes == (None if halves[0] is None else halves[0] + (halves[1] or b""))
    assert len(whole.bad) == len(first.bad) + len(second.bad)
