from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import tokenizers

from megatron_ext.tokenizer.byte_level_native import byte_characters
from tests.unit.data.small import TEXTS, train_sentence_piece


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentence_piece(tmp_path_factory.mktemp("tokenizer") / "small.model")


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE file that begins every text with <s>, in a folder with its side file."""
    folder = tmp_path_factory.mktemp("hugging_face")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXTS * 5, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model.save(str(folder / "tokenizer.json"))
    side = {"eos_token": "</s>", "bos_token": {"content": "<s>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(side), encoding="utf-8")
    return folder / "tokenizer.json"


@pytest.fixture(scope="session")
def rank_file(tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens of `tokenizer_json` as a .tiktoken file of 397 ranks."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    vocabulary = json.loads(tokenizer_json.read_text(encoding="utf-8"))["model"]["vocab"]
    names = [name for name in sorted(vocabulary, key=vocabulary.__getitem__) if name not in ("<s>", "</s>", "<pad>")]
    tokens = [bytes(byte_of[character] for character in name) for name in names]
    path = tmp_path_factory.mktemp("tiktoken") / "small.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path
