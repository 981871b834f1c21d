"""--tokenizer-type and --tokenizer-model to a tokenizer, or to a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer import TOKENIZER_TYPES, build_tokenizer


def test_every_known_type_is_built_under_its_name(model_file: Path, tokenizer_json: Path, rank_file: Path):
    files = {"HuggingFaceTokenizer": tokenizer_json, "TikTokenizer": rank_file, "NullTokenizer": None}
    for name in TOKENIZER_TYPES:
        tokenizer = build_tokenizer(name, files.get(name, model_file), 50 if name == "NullTokenizer" else None)
        assert tokenizer.type_name == name
        assert 0 <= tokenizer.eod_id < tokenizer.vocab_size
        assert tokenizer.engine in ("native", "sentencepiece", "tokenizers", "tiktoken", "numbers")
        assert len(tokenizer.fingerprint) == 64
        assert bool(tokenizer.files) == (name != "NullTokenizer")


@pytest.mark.parametrize(
    ("name", "model", "vocab_size"),
    [
        ("GPT2BPETokenizer", "x", None),
        ("Llama2Tokenizer", None, None),
        ("NullTokenizer", None, None),
        ("NullTokenizer", "x", 10),
        ("NullTokenizer", None, 0),
        ("TikTokenizer", None, None),
    ],
)
def test_impossible_requests_are_refused(name: str, model: str | None, vocab_size: int | None):
    with pytest.raises(TokenizerError):
        build_tokenizer(name, model, vocab_size)


def test_a_vocabulary_size_that_disagrees_with_the_file_is_refused(model_file: Path):
    size = build_tokenizer("Llama2Tokenizer", model_file).vocab_size
    assert build_tokenizer("Llama2Tokenizer", model_file, size).vocab_size == size
    with pytest.raises(TokenizerError, match=f"{size + 1}"):
        build_tokenizer("Llama2Tokenizer", model_file, size + 1)
