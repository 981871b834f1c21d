"""A native engine that gives one other id than its library is refused, with the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext import native
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer import build_tokenizer
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer, batch_of_lists
from megatron_ext.tokenizer.engine_check import refuse_different_ids
from megatron_ext.tokenizer.null import NullTokenizer
from tests.unit.data.small import TEXTS


class Wrong(NullTokenizer):
    """Says it is native, and gives the reference one id too few for the text `1 2 3`."""

    engine = "native"

    def encode_reference_batch(self, texts: list[str]) -> EncodedBatch:
        return batch_of_lists([self.encode(text)[:2] for text in texts])


def test_the_first_text_with_other_ids_is_named():
    refuse_different_ids(Wrong(9), ["1", "", "1 2"])
    with pytest.raises(TokenizerError, match=r"'1 2 3': from token 2 on \[3\], the library \[\]"):
        refuse_different_ids(Wrong(9), ["1", "1 2 3", "4 5 6"])
    with pytest.raises(TokenizerError, match=r"\(199 characters\)"):
        refuse_different_ids(Wrong(9), ["1 " * 99 + "1"])


def test_other_engines_are_not_looked_at():
    class Library(Wrong):
        engine = "library"

    refuse_different_ids(Library(9), ["1 2 3"])


@pytest.mark.skipif(not native.COMPILED, reason="the extension is not built")
def test_real_tokenizers_pass(model_file: Path, tokenizer_json: Path):
    found: list[Tokenizer] = [
        build_tokenizer("Llama2Tokenizer", model_file),
        build_tokenizer("HuggingFaceTokenizer", tokenizer_json),
    ]
    for tokenizer in found:
        assert tokenizer.engine == "native"
        refuse_different_ids(tokenizer, TEXTS)
