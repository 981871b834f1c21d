from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

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
