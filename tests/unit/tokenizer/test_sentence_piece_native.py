"""The compiled SentencePiece encoder gives the library's ids for every kind of model it takes; others it refuses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from megatron_ext import native
from megatron_ext.tokenizer.engines import NotNativeError
from megatron_ext.tokenizer.sentence_piece_native import native_sentence_piece
from tests.unit.data.small import train_sentence_piece
from tests.unit.tokenizer.odd_texts import ODD_TEXTS

pytestmark = pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")

SYMBOLS = ["▁▁", "▁▁▁", "0", "1", "\n", "<sep>", "quick", "qui"]
FLAGS = ("add_dummy_prefix", "remove_extra_whitespaces", "treat_whitespace_as_suffix", "split_by_whitespace")


@pytest.fixture(scope="module", params=["bytes", "bytes_symbols", "unknown", "unknown_symbols"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """One model for each setting of the four flags; what they change in the text is set in the file afterwards."""
    path = train_sentence_piece(
        tmp_path_factory.mktemp("models") / "a.model",
        byte_fallback="bytes" in request.param,
        vocab_size=400 if "bytes" in request.param else 160,
        user_defined_symbols=SYMBOLS if "symbols" in request.param else [],
        split_by_whitespace=False,
        remove_extra_whitespaces=False,
    )
    return [with_flags(path.read_bytes(), *flags) for flags in itertools.product([False, True], repeat=4)]


def with_flags(content: bytes, prefix: bool, remove: bool, suffix: bool, escape: bool) -> bytes:
    model = parsed(content)
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = remove
    model.trainer_spec.treat_whitespace_as_suffix = suffix
    model.normalizer_spec.escape_whitespaces = escape
    return model.SerializeToString()


def parsed(content: bytes):
    return sentencepiece_model_pb2.ModelProto.FromString(content)


def same_ids(content: bytes, texts: list[str], tuning: tuple[int, int]) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=content).encode(texts)
    encoder = native_sentence_piece(content, native.bpe.BpeTuning(*tuning))
    for _ in range(2):  # the second time from the cache
        ids, lengths, declined = encoder.encode_batch(texts)
        assert declined == []
        assert lengths.tolist() == [len(row) for row in reference]
        assert ids.tolist() == [index for row in reference for index in row]


@settings(deadline=None, max_examples=40)
@given(data=st.data(), texts=st.lists(ODD_TEXTS, max_size=8), tuning=st.sampled_from([(2, 1), (7, 3), (96, 16)]))
def test_ids_are_the_librarys(data: st.DataObject, texts: list[str], tuning: tuple[int, int], models: list[bytes]):
    for content in data.draw(st.lists(st.sampled_from(models), min_size=3, max_size=3)):
        same_ids(content, texts, tuning)


EDGES = ["", " ", "▁", "▁ ▁", "  ▁", "a▁", "▁a ", " a  b ", "\x00", "\ufffd", "<s>", "</s>", "<unk>", "<0x0A>"]


def test_edges_of_the_normaliser(models: list[bytes]):
    for content in models:
        same_ids(content, EDGES, (96, 4))


def test_every_character_there_is(model_file: Path):
    content = model_file.read_bytes()
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    chosen = [code for code in codes if code < 0x3400 or code % 97 == 0]
    same_ids(content, [chr(code) + "a" for code in chosen], (96, 10))


def test_equal_scores_are_merged_leftmost_first(model_file: Path):
    model = parsed(model_file.read_bytes())
    for piece in model.pieces:
        piece.score = round(piece.score / 50)
    same_ids(model.SerializeToString(), ["the quick brown fox" * 20, "天地玄黄宇宙洪荒", "aaaaa bbbb"], (5, 4))


def broken(content: bytes, fault: str) -> bytes:
    model = parsed(content)
    if fault == "unigram":
        model.trainer_spec.model_type = 1
    if fault == "normaliser":
        model.normalizer_spec.precompiled_charsmap = b"x"
    if fault == "unused":
        model.pieces[-1].type = 5
    if fault == "unknown piece":
        model.trainer_spec.unk_piece = "<nowhere>"
    if fault == "byte pieces":
        model.pieces[10].type = 1
    if fault == "holds a space":
        model.pieces[-1].type, model.pieces[-1].piece = 4, "a b"
    if fault == "single character":
        model.pieces[1].piece = "€"
    return model.SerializeToString()


@pytest.mark.parametrize(
    "fault",
    ["unigram", "normaliser", "unused", "unknown piece", "byte pieces", "holds a space", "single character"],
)
def test_other_models_are_left_to_the_library(fault: str, model_file: Path):
    with pytest.raises(NotNativeError, match=fault):
        native_sentence_piece(broken(model_file.read_bytes(), fault))


def test_texts_with_lone_surrogates_are_declined_and_other_things_refused(model_file: Path):
    encoder = native_sentence_piece(model_file.read_bytes())
    assert encoder.encode_batch(["a", "\ud800", "b"])[2] == [1]
    with pytest.raises(TypeError):
        encoder.encode_batch([b"a"])
    with pytest.raises(TypeError):
        encoder.encode_batch(3)
