"""Rank files are read or refused; what they leave open comes from the file beside them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.tik_token_files import SETTINGS_NAME, TikTokenSettings, read_ranks, settings_for

BYTES = [bytes([byte]) for byte in range(256)]
FILE = Path("a.tiktoken")


def lines(tokens: list[bytes], first: int = 0) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens, first))


def as_list(tokens: list[bytes]) -> bytes:
    rows = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": ""}
        for rank, token in enumerate(tokens)
    ]
    return json.dumps(rows).encode()


def test_both_kinds_of_files_give_the_tokens_by_rank():
    tokens = [*reversed(BYTES), b"ab", b"\x00\xff\n"]
    assert read_ranks(lines(tokens), FILE) == read_ranks(as_list(tokens), FILE) == tokens
    shuffled = b"\n".join(reversed(lines(tokens).splitlines()))
    assert read_ranks(shuffled + b"\n\n", FILE) == tokens


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not a file of ranked tokens"),
        (b"IQ==\n", "not a file of ranked tokens"),
        (b"!!! 0\n", "not a file of ranked tokens"),
        (b'[{"rank": 0}]', "not a file of ranked tokens"),
        (b"[3]", "not a file of ranked tokens"),
        (lines([*BYTES, b"a"]), "257 tokens must be different"),
        (lines(BYTES, first=1), "ranks from 0 on"),
        (lines(BYTES[:-2]), "2 of the 256 bytes"),
    ],
)
def test_damaged_files_are_refused_by_name(content: bytes, message: str):
    with pytest.raises(TokenizerError, match=rf"a\.tiktoken.*{message}"):
        read_ranks(content, FILE)


def test_without_settings_the_usual_ones_hold(tmp_path: Path):
    file = tmp_path / "a.tiktoken"
    assert settings_for(file, False, 5000) == TikTokenSettings()
    assert settings_for(file, True, 5000).vocab_size == 6000
    assert settings_for(file, True, 150_000).vocab_size == 131_072
    qwen = settings_for(file, False, 151_643)
    names = qwen.all_special_tokens()
    assert (len(names), names[2], names[-1]) == (208, "<|im_end|>", "<|extra_204|>")
    assert (qwen.pattern, qwen.specials_first, qwen.eod) == ("qwen", False, "<|endoftext|>")


def test_the_file_beside_it_wins(tmp_path: Path):
    content = {
        "pattern": "o200k",
        "special_tokens": ["<a>", "<b>"],
        "num_special_tokens": 4,
        "eod": "<b>",
        "bos": None,
        "pad": None,
    }
    (tmp_path / SETTINGS_NAME).write_text(json.dumps(content))
    settings = settings_for(tmp_path / "a.tiktoken", False, 151_643)
    assert settings.all_special_tokens() == ["<a>", "<b>", "<SPECIAL_2>", "<SPECIAL_3>"]
    assert (settings.pattern, settings.eod, settings.bos) == ("o200k", "<b>", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be used"),
        ("3", "cannot be used"),
        ('{"patern": "v1"}', "patern"),
        ('{"pattern": "v3"}', "v3"),
        ('{"num_special_tokens": 3}', "num_special_tokens 3"),
        ('{"eod": "<nowhere>"}', "<nowhere>"),
        ('{"special_tokens": ["<s>", "<s>", "</s>", "<pad>"]}', "different special tokens"),
        ('{"special_tokens": ["</s>", "<s>", "<s>x", "<pad>"]}', "the beginning of another"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, content: str, message: str):
    (tmp_path / SETTINGS_NAME).write_text(content)
    with pytest.raises(TokenizerError, match=rf"(?s){SETTINGS_NAME}.*{message}"):
        settings_for(tmp_path / "a.tiktoken", False, 5000)
