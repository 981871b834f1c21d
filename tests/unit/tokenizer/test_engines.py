"""The choice of an engine, and texts that go to the library one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext import native
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer import build_tokenizer
from megatron_ext.tokenizer.base import EncodedBatch, batch_of_lists
from megatron_ext.tokenizer.engines import NativeEncoder, NotNativeError, choose_engine
from tests.unit.data.small import TEXTS, train_sentence_piece

needs_compiler = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")


class Fake:
    """Encodes a text as the numbers of its letters; declines texts with an x."""

    def encode_batch(self, texts: list[str]) -> tuple:
        rows = [[] if "x" in text else [ord(c) for c in text] for text in texts]
        batch = batch_of_lists(rows)
        return batch.ids, batch.lengths, [index for index, text in enumerate(texts) if "x" in text]


def library(texts: list[str]) -> EncodedBatch:
    return batch_of_lists([[-ord(c) for c in text] for text in texts])


@pytest.mark.parametrize("texts", [[], ["x"], ["ab", "x", "", "c"], ["x", "xx", "?x"], ["a", "?b", "x", "cc", "x"]])
def test_declined_texts_get_the_librarys_ids_in_their_place(texts: list[str]):
    encoder = NativeEncoder(Fake(), library, lambda text: not text.startswith("?"))
    batch = encoder.encode(texts)
    rows = [[(-1 if "x" in text or text[:1] == "?" else 1) * ord(c) for c in text] for text in texts]
    assert batch.ids.tolist() == [index for row in rows for index in row]
    assert batch.lengths.tolist() == [len(row) for row in rows]


def test_an_engine_is_chosen_as_asked():
    encoder = NativeEncoder(Fake(), library)

    def refuse() -> NativeEncoder:
        raise NotNativeError("it is odd")

    assert choose_engine("reference", lambda: encoder, "f") is None
    assert choose_engine("auto", refuse, "f") is None
    with pytest.raises(TokenizerError, match=r"turbo.*auto, native, reference"):
        choose_engine("turbo", lambda: encoder, "f")
    if native.COMPILED:
        assert choose_engine("auto", lambda: encoder, "f") is encoder
        with pytest.raises(TokenizerError, match="cannot be used for f: it is odd"):
            choose_engine("native", refuse, "f")


def test_without_the_extension_the_library_is_used(monkeypatch: pytest.MonkeyPatch, model_file: Path):
    monkeypatch.setattr(native, "bpe", None)
    tokenizer = build_tokenizer("Llama2Tokenizer", model_file)
    assert tokenizer.engine == "sentencepiece"
    assert tokenizer.encode("a")
    with pytest.raises(TokenizerError, match="not built"):
        build_tokenizer("Llama2Tokenizer", model_file, engine="native")


@needs_compiler
@pytest.mark.parametrize("kind", ["Llama2Tokenizer", "GPTSentencePieceTokenizer", "HuggingFaceTokenizer"])
def test_both_engines_give_the_same_ids(kind: str, model_file: Path, tokenizer_json: Path):
    file = tokenizer_json if kind == "HuggingFaceTokenizer" else model_file
    texts = [*TEXTS, "", "\u0378 unassigned"]
    mine, theirs = (build_tokenizer(kind, file, engine=engine) for engine in ("native", "reference"))
    assert (mine.engine, theirs.engine == "native") == ("native", False)
    for ours, wanted in (
        (mine.encode_batch(texts), theirs.encode_batch(texts)),
        (mine.encode_plain_batch(texts), theirs.encode_plain_batch(texts)),
        (mine.encode_batch(texts), mine.encode_reference_batch(texts)),
        (mine.encode_batch([]), theirs.encode_batch([])),
    ):
        assert ours.ids.dtype == np.int32
        np.testing.assert_array_equal(ours.ids, wanted.ids)
        np.testing.assert_array_equal(ours.lengths, wanted.lengths)


@needs_compiler
def test_models_that_need_their_library_are_read_by_it(tmp_path: Path):
    path = train_sentence_piece(tmp_path / "u.model", model_type="unigram", vocab_size=360)
    assert build_tokenizer("GPTSentencePieceTokenizer", path).engine == "sentencepiece"
    with pytest.raises(TokenizerError, match="unigram"):
        build_tokenizer("GPTSentencePieceTokenizer", path, engine="native")
