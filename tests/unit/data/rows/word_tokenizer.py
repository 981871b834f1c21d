"""A tokenizer whose tokens can be read: words, runs of white space, single signs; and special tokens of any name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.encoder import BlockEncoder, EncodedBlock
from megatron_ext.data.rows.settings import EncodeSettings, RowSettings
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer, batch_of_lists

_WORD = re.compile(r"\w+|\s+|[^\w\s]")
Tokens = list[tuple[str, int]]


class WordTokenizer(Tokenizer):
    """Ids are given to words as they come; `specials` get theirs first and are never found in a text."""

    type_name = "WordTokenizer"

    def __init__(self, *specials: str, bos: str | None = None) -> None:
        self._ids: dict[str, int] = {}
        self._specials = {name: self._id(f"special {name}") for name in ("</s>", *specials, *([bos] if bos else []))}
        self.vocab_size = 1000
        self.eod_id = self._specials["</s>"]
        self.bos_id: int | None = None if bos is None else self._specials[bos]
        self.pad_id: int | None = None
        self.fingerprint = "words"
        self.files: list[Path] = []
        self.engine = "reference"
        self.num_batches = 0

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        before = [] if self.bos_id is None else [self.bos_id]
        self.num_batches += 1
        return batch_of_lists([before + self._words(text) for text in texts])

    def encode_plain_batch(self, texts: Sequence[str]) -> EncodedBatch:
        return batch_of_lists([self._words(text) for text in texts])

    def token_id(self, name: str) -> int | None:
        return self._specials.get(name)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.words(ids))

    def words(self, ids: Sequence[int]) -> list[str]:
        names = {index: word.removeprefix("special ") for word, index in self._ids.items()}
        return [names[int(index)] for index in ids]

    def _words(self, text: str) -> list[int]:
        return [self._id(word) for word in _WORD.findall(text)]

    def _id(self, word: str) -> int:
        return self._ids.setdefault(word, len(self._ids))


class Records:
    """A block of records that are parsed already."""

    file_index = 2

    def __init__(self, *records: dict[str, Any] | str | RecordError, first_record: int = 1) -> None:
        self.records = records
        self.first_record = first_record

    def parsed(self) -> list[Any]:
        return list(self.records)

    def raw(self, index: int) -> bytes:
        return repr(self.records[index]).encode()


def encode(tokenizer: Tokenizer, rows: RowSettings, *records: dict[str, Any] | str | RecordError) -> EncodedBlock:
    settings = EncodeSettings(rows, "uint16")
    return BlockEncoder(settings, tokenizer)(Records(*records))


def documents(tokenizer: WordTokenizer, block: EncodedBlock, output: int = 0) -> list[Tokens]:
    """The documents of one output as (word, code) lists; an output without a mask has code 1 everywhere."""
    found = block.documents[output]
    words = tokenizer.words(np.frombuffer(found.token_bytes, np.uint16))
    codes = [1] * len(words) if found.mask_bytes is None else list(found.mask_bytes)
    assert len(words) == len(codes) == found.lengths.sum()
    ends = np.cumsum(found.lengths).tolist()
    starts = [0, *ends][:-1]
    return [list(zip(words[a:b], codes[a:b], strict=True)) for a, b in zip(starts, ends, strict=True)]


def one_row(tokenizer: WordTokenizer, rows: RowSettings, record: dict[str, Any] | str, output: int = 0) -> Tokens:
    """The (word, code) list of the only document of one record."""
    block = encode(tokenizer, rows, record)
    assert not block.bad, block.bad
    (document,) = documents(tokenizer, block, output)
    return document


def why_refused(tokenizer: Tokenizer, rows: RowSettings, record: dict[str, Any] | str) -> tuple[str, str]:
    """Reason and detail of the only record, which must give no document."""
    block = encode(tokenizer, rows, record)
    assert all(not len(output.lengths) and not output.token_bytes for output in block.documents)
    (bad,) = block.bad
    return bad.reason, bad.detail
