"""The tokenizer of a dataset is the one that made it, whoever names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer
from megatron_ext.data.store.manifest import TokenizerFacts, read_manifest
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.build import build_tokenizer
from tests.unit.data.described import random_records, write_run


@pytest.fixture
def manifest(tmp_path: Path):
    return read_manifest(write_run(tmp_path / "x", random_records(0, 5)))


def facts_of(model_file: Path) -> TokenizerFacts:
    made = build_tokenizer("Llama2Tokenizer", model_file)
    return TokenizerFacts("Llama2Tokenizer", str(model_file), made.fingerprint, made.vocab_size, made.eod_id)


def test_the_manifest_names_it(manifest, model_file: Path):
    assert open_tokenizer(manifest, TokenizerFlags()).vocab_size == 1001
    with_model = dataclasses.replace(manifest, tokenizer=facts_of(model_file))
    assert open_tokenizer(with_model, TokenizerFlags()).type_name == "Llama2Tokenizer"


def test_a_flag_wins_and_must_be_the_right_one(manifest, model_file: Path):
    moved = dataclasses.replace(manifest, tokenizer=dataclasses.replace(facts_of(model_file), model="moved.model"))
    with pytest.raises(TokenizerError, match=r"moved\.model"):
        open_tokenizer(moved, TokenizerFlags())
    assert open_tokenizer(moved, TokenizerFlags(model=str(model_file))).vocab_size == moved.tokenizer.vocab_size
    with pytest.raises(TokenizerError, match="fingerprint"):
        open_tokenizer(manifest, TokenizerFlags(vocab_size=7))


def test_without_manifest_the_flags_say_it_all(model_file: Path):
    assert open_tokenizer(None, TokenizerFlags("NullTokenizer", None, 7)).vocab_size == 8
    assert open_tokenizer(None, TokenizerFlags("Llama2Tokenizer", str(model_file))).bos_id is not None
    with pytest.raises(TokenizerError, match="no manifest"):
        open_tokenizer(None, TokenizerFlags(model=str(model_file)))
    assert TokenizerFlags(vocab_size=7).given and not TokenizerFlags().given
