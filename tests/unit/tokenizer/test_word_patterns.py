"""Each known pattern is, letter for letter, the one its users write."""

from __future__ import annotations

from megatron.core.tokenizers.text.libraries import tiktoken_tokenizer
from tiktoken_ext import openai_public

from megatron_ext.tokenizer import word_patterns
from megatron_ext.tokenizer.word_patterns import JSON_PATTERNS, TIKTOKEN_PATTERNS, WordPattern


def test_patterns_of_megatron_are_known():
    assert word_patterns.MEGATRON_V1 == tiktoken_tokenizer._PATTERN_TIKTOKEN_V1
    assert word_patterns.MEGATRON_V2 == tiktoken_tokenizer._PATTERN_TIKTOKEN_V2


def test_the_pattern_of_cl100k_is_tiktokens(monkeypatch):
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *args, **settings: {})
    assert openai_public.cl100k_base()["pat_str"] == word_patterns.CL100K
    assert openai_public.o200k_base()["pat_str"] == word_patterns.O200K


def test_every_known_pattern_is_another_one():
    assert (len(JSON_PATTERNS), len(TIKTOKEN_PATTERNS)) == (7, 5)
    assert JSON_PATTERNS[word_patterns.QWEN] == WordPattern("cl100k")
    assert JSON_PATTERNS[word_patterns.CL100K_JSON] == TIKTOKEN_PATTERNS[word_patterns.CL100K]
    assert word_patterns.CL100K not in JSON_PATTERNS
    assert set(WordPattern("gpt2").options()) == {"family", "contractions", "max_digits", "slashes", "whole_ending"}
