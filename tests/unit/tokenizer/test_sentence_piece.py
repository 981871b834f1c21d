"""SentencePiece models give the library's own ids, under Megatron-LM's three names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.sentence_piece import GPTSentencePieceTokenizer, Llama2Tokenizer, SentencePieceTokenizer
from tests.unit.data.small import TEXTS, train_sentence_piece


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(st.text() | st.sampled_from(TEXTS), max_size=8))
def test_batches_hold_the_librarys_ids(texts: list[str], model_file: Path):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    batch = GPTSentencePieceTokenizer(model_file).encode_batch(texts)
    assert batch.lengths.tolist() == [len(reference.encode(text)) for text in texts]
    assert batch.ids.tolist() == [index for text in texts for index in reference.encode(text)]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_text_up_to_the_spaces_that_the_model_removes(text: str, model_file: Path):
    tokenizer = GPTSentencePieceTokenizer(model_file)
    assert tokenizer.decode(tokenizer.encode(text)) == re.sub(" +", " ", text).strip(" ")


def test_the_gpt_type_ends_documents_with_eos(model_file: Path):
    tokenizer = GPTSentencePieceTokenizer(model_file)
    assert (tokenizer.bos_id, tokenizer.eod_id, tokenizer.pad_id) == (1, 2, None)


def test_the_llama_type_begins_every_text_that_has_ids_with_bos(model_file: Path):
    plain, llama = GPTSentencePieceTokenizer(model_file), Llama2Tokenizer(model_file)
    assert llama.fingerprint == plain.fingerprint
    batch = llama.encode_batch(["a", "", "天地"])
    assert batch.ids.tolist() == [1, *plain.encode("a"), 1, *plain.encode("天地")]
    assert batch.lengths.tolist() == [len(plain.encode("a")) + 1, 0, len(plain.encode("天地")) + 1]


@pytest.mark.parametrize("piece", ["<eod>", "<EOD>", "<|endoftext|>"])
def test_the_plain_type_prefers_the_end_of_document_piece(tmp_path: Path, piece: str):
    path = train_sentence_piece(tmp_path / "eod.model", user_defined_symbols=[piece])
    tokenizer = SentencePieceTokenizer(path)
    assert tokenizer.eod_id == 3
    assert GPTSentencePieceTokenizer(path).eod_id == 2


def test_the_plain_type_without_such_a_piece_ends_documents_with_eos(model_file: Path):
    assert SentencePieceTokenizer(model_file).eod_id == 2


def test_a_model_that_cannot_end_a_document_is_refused(tmp_path: Path):
    path = train_sentence_piece(tmp_path / "no_eos.model", eos_id=-1)
    with pytest.raises(TokenizerError, match="end-of-sentence"):
        GPTSentencePieceTokenizer(path)


def test_the_llama_type_refuses_a_model_without_bos(tmp_path: Path):
    path = train_sentence_piece(tmp_path / "no_bos.model", bos_id=-1, eos_id=1)
    with pytest.raises(TokenizerError, match="beginning-of-sentence"):
        Llama2Tokenizer(path)


@pytest.mark.parametrize("content", [b"garbage" * 100, b"{}", b"\x00" * 64])
def test_garbage_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "garbage.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"garbage\.model"):
        GPTSentencePieceTokenizer(path)


def test_ids_outside_the_vocabulary_are_not_decoded(model_file: Path):
    tokenizer = GPTSentencePieceTokenizer(model_file)
    for index in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match=f"{index}"):
            tokenizer.decode([index])


def test_pieces_are_found_by_name(model_file: Path):
    tokenizer = Llama2Tokenizer(model_file)
    assert [tokenizer.token_id(name) for name in ("<unk>", "<s>", "</s>", "<0x00>", "nowhere")] == [0, 1, 2, 3, None]
    assert tokenizer.encode_plain_batch(["a"]).ids.tolist() == tokenizer.encode("a")[1:]
