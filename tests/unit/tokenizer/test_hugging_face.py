"""tokenizer.json files give the ids of transformers, and nothing is looked up on a hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.hugging_face import HuggingFaceTokenizer
from tests.unit.data.small import TEXTS


def test_ids_are_those_of_transformers(tokenizer_json: Path):
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_json))
    batch = HuggingFaceTokenizer(tokenizer_json).encode_batch(TEXTS)
    assert batch.ids.tolist() == [index for text in TEXTS for index in reference(text).input_ids]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_text_after_its_special_tokens(text: str, tokenizer_json: Path):
    tokenizer = HuggingFaceTokenizer(tokenizer_json)
    assert tokenizer.decode(tokenizer.encode(text)) == f"<s>{text}"


def test_a_folder_and_its_file_are_the_same(tokenizer_json: Path):
    file, folder = HuggingFaceTokenizer(tokenizer_json), HuggingFaceTokenizer(tokenizer_json.parent)
    assert (file.fingerprint, file.files) == (folder.fingerprint, folder.files)
    assert [path.name for path in file.files] == ["tokenizer.json", "tokenizer_config.json"]
    assert (file.bos_id, file.eod_id, file.pad_id) == (0, 1, 2)


def test_special_tokens_are_guessed_from_usual_names_without_side_files(tokenizer_json: Path, tmp_path: Path):
    shutil.copy(tokenizer_json, tmp_path)
    assert HuggingFaceTokenizer(tmp_path).eod_id == 1


def test_an_eos_token_outside_the_vocabulary_is_refused(tokenizer_json: Path, tmp_path: Path):
    shutil.copy(tokenizer_json, tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<nowhere>"}))
    with pytest.raises(TokenizerError, match="nowhere"):
        HuggingFaceTokenizer(tmp_path)


def test_names_on_a_hub_and_empty_folders_are_refused(tmp_path: Path):
    with pytest.raises(TokenizerError, match="hub"):
        HuggingFaceTokenizer(Path("gpt2-that-is-no-file"))
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match="Llama2Tokenizer"):
        HuggingFaceTokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b'{"model": 3}', b"[]"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        HuggingFaceTokenizer(tmp_path)


def test_damaged_side_files_are_refused(tokenizer_json: Path, tmp_path: Path):
    shutil.copy(tokenizer_json, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="tokenizer_config"):
        HuggingFaceTokenizer(tmp_path)


def test_plain_batches_lack_what_the_post_processor_adds(tokenizer_json: Path):
    tokenizer = HuggingFaceTokenizer(tokenizer_json)
    assert tokenizer.encode("a </s>") == [0, *tokenizer.encode_plain_batch(["a </s>"]).ids.tolist()]
    assert tokenizer.encode("") == [0]
    assert [tokenizer.token_id(name) for name in ("<s>", "<pad>", "nowhere")] == [0, 2, None]
