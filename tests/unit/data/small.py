"""Small real things the data tests are made of: texts in two scripts, a tokenizer, datasets, a data configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from megatron_ext.config.sections.data import DataConfig
from megatron_ext.data.store.indexed_writer import IndexedWriter, write_indexed
from megatron_ext.tokenizer.null import NullTokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, twice in 2023.",
    "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。",
    "def add(a, b):\n    return a + b\n",
    "寒来暑往，秋收冬藏。 Mixed text with 12 numbers and 中文.",
    "a",
    "  leading and   inner spaces  ",
    "emoji 🙂 and U+2028 \u2028 and NUL \u0000 inside",
]


def train_sentence_piece(path: Path, **settings: object) -> Path:
    """Train a byte-fallback BPE model of 400 pieces on TEXTS and write it to `path`."""
    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([line for text in TEXTS * 20 for line in text.split("\n") if line]),
            model_writer=stream,
            **{
                "vocab_size": 400,
                "model_type": "bpe",
                "byte_fallback": True,
                "normalization_rule_name": "identity",
                "minloglevel": 2,
                "hard_vocab_limit": False,
                **settings,
            },
        )
    return path


def write_jsonl(path: Path, texts: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def random_documents(seed: int, count: int, largest_length: int = 30, vocab_size: int = 1000) -> list[np.ndarray]:
    """Documents of 0 to `largest_length` random tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, random.integers(0, largest_length + 1)) for _ in range(count)]


def make_dataset(folder: Path, name: str = "data", seed: int = 0, count: int = 200, **settings: int) -> str:
    """Write a dataset of random documents without manifest; its prefix."""
    prefix = str(folder / name)
    write_indexed(prefix, random_documents(seed, count, **settings), np.uint16)
    return prefix


def random_masks(seed: int, documents: list[np.ndarray]) -> list[np.ndarray]:
    """Codes 0, 1 and 2 of a loss mask, uint8 `[length]` for each document."""
    random = np.random.default_rng(seed)
    return [random.integers(0, 3, len(document)).astype(np.uint8) for document in documents]


def write_masked(prefix: Path, documents: list[np.ndarray], masks: list[np.ndarray]) -> None:
    """Write a dataset with a loss mask, without manifest."""
    writer = IndexedWriter(prefix, np.uint16, with_loss_mask=True)
    for document, mask in zip(documents, masks, strict=True):
        writer.append_document(document, mask.tobytes())
    writer.finish()
    writer.publish()
    writer.discard()


def data_config(**values: Any) -> DataConfig:
    """A DataConfig that leaves something for every part."""
    return DataConfig(**{"split": "80,10,10", **values})


TOKENIZER = NullTokenizer(1000)
