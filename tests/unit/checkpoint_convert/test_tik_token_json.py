"""A rank file, exported, gives the training ids."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import tokenizers

from checkpoint_convert.tik_token_json import write_tik_token
from checkpoint_convert.tokenizer_files import SAMPLES, write_tokenizer
from megatron_ext.errors import ConversionError
from megatron_ext.tokenizer.null import NullTokenizer
from megatron_ext.tokenizer.tik_token import TikTokenizer
from megatron_ext.tokenizer.tik_token_files import PATTERNS, SETTINGS_NAME

WORDS = [
    "th",
    "he",
    "the",
    " the",
    "qu",
    "ick",
    "quick",
    "中文",
    "中",
    "文",
    "的",
    "  ",
    "\n\n",
    "12",
    "ab",
    "abc",
    "bc",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_exported_file_gives_the_training_ids(pattern: str, tmp_path: Path):
    tokens = [*(bytes([byte]) for byte in range(256)), *(word.encode() for word in WORDS)]
    path = tmp_path / "a.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    (tmp_path / SETTINGS_NAME).write_text(f'{{"pattern": "{pattern}", "num_special_tokens": 20}}')
    tokenizer = TikTokenizer(path)
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer(folder, tokenizer, 128)
    written = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in [*SAMPLES, "the abc</s><SPECIAL_12> quick"]:
        assert written.encode(text).ids == tokenizer.encode(text)
    assert written.get_vocab_size() == tokenizer.vocab_size
    assert written.token_to_id("</s>") == tokenizer.eod_id == 2


def test_other_tokenizers_are_refused(tmp_path: Path):
    with pytest.raises(ConversionError, match="NullTokenizer"):
        write_tik_token(NullTokenizer(9), tmp_path / "tokenizer.json")
