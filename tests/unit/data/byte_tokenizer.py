"""A tokenizer that loses nothing: ids are the bytes of a text, so every document can be read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_ext.data.preprocessing import preprocess as preprocess_module
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes of UTF-8, the last id ends a document."""

    type_name = "ByteTokenizer"

    def __init__(self, vocab_size: int = 257) -> None:
        self.vocab_size = vocab_size
        self.eod_id = vocab_size - 1
        self.bos_id: int | None = None
        self.pad_id: int | None = None
        self.fingerprint = f"bytes {vocab_size}"
        self.files: list[Path] = []
        self.engine = "reference"

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        encoded = [text.encode() for text in texts]
        ids = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32)
        return EncodedBatch(ids, np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(index) for index in ids).decode()


def use_tokenizer(monkeypatch, tokenizer: Tokenizer) -> None:
    """Let preprocess() have this tokenizer, whatever the request names."""
    monkeypatch.setattr(preprocess_module, "build_tokenizer", lambda *_: tokenizer)


def documents_of(prefix: str | Path) -> list[str]:
    """The documents of a dataset of bytes."""
    dataset = IndexedDataset(prefix)
    return [dataset[index].astype(np.uint8).tobytes().decode() for index in range(len(dataset))]
