"""The command trains what its flags say, beginning from a preset."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.errors import ConfigError
from megatron_ext.tokenizer.presets import PRESETS
from tests.unit.data.small import TEXTS, write_jsonl
from tools import train_tokenizer


def settings(*words: str):
    return train_tokenizer.settings_from(
        train_tokenizer.make_parser().parse_args(["--input", "i", "--output-prefix", "o", *words])
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_the_preset(name: str):
    assert settings("--preset", name) == PRESETS[name]


def test_flags_stand_above_the_preset():
    found = settings(
        *("--preset", "baichuan2", "--vocab-size", "900", "--no-byte-fallback", "--add-dummy-prefix"),
        *(
            "--model-type",
            "unigram",
            "--normalization",
            "nfkc",
            "--max-piece-length",
            "8",
            "--character-coverage",
            "0.5",
        ),
        *("--no-split-digits", "--remove-extra-whitespaces", "--no-allow-whitespace-only-pieces"),
        *("--user-defined-symbols", "<|user|>", "\\n", "a,b"),
    )
    assert (found.vocab_size, found.model_type, found.normalization, found.max_piece_length) == (
        900,
        "unigram",
        "nfkc",
        8,
    )
    assert (found.byte_fallback, found.add_dummy_prefix, found.split_digits) == (False, True, False)
    assert (found.remove_extra_whitespaces, found.allow_whitespace_only_pieces) == (True, False)
    assert found.character_coverage == 0.5
    assert found.user_defined_symbols == (*PRESETS["baichuan2"].user_defined_symbols, "<|user|>", "\n", "a,b")


def test_the_command_writes_a_model_and_says_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_jsonl(tmp_path / "in.jsonl", TEXTS * 40)
    prefix = tmp_path / "made" / "tok"
    train_tokenizer.main(
        ["--input", str(path), "--output-prefix", str(prefix), "--vocab-size", "350", "--user-defined-symbols", "a,b"]
    )
    assert sorted(p.name for p in prefix.parent.iterdir()) == ["tok.model", "tok.vocab"]
    out = capsys.readouterr().out
    assert "280 records read = 280 used + 0 bad + 0 empty" in out
    assert "350 pieces, 256 of them bytes" in out


@pytest.mark.parametrize("words", [["--modeltype", "bpe"], ["--preset", "gpt5"], ["--vocab-size", "many"]])
def test_mistakes_are_refused(words: list[str]):
    with pytest.raises(ConfigError):
        settings(*words)
