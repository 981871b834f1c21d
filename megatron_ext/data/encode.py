"""The work on one block of lines: parse, tokenize, check, pack. Runs in worker processes; imports no torch."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.readers import LineBlock
from megatron_ext.data.records import BadRecord, RecordError, parse_record
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer
from megatron_ext.tokenizer.build import build_tokenizer


@dataclass(frozen=True)
class EncodeSettings:
    """What a worker needs to know; plain values, so that it can be sent to one.

    Attributes:
        keys: JSON keys whose texts become documents.
        append_eod: end each document with the tokenizer's end-of-document id.
        dtype: numpy name of the stored token type.
        tokenizer_type: as in --tokenizer-type.
        tokenizer_model: as in --tokenizer-model.
        vocab_size: as in --vocab-size.
        fingerprint: the fingerprint of the tokenizer the parent checked.
    """

    keys: tuple[str, ...]
    append_eod: bool
    dtype: str
    tokenizer_type: str
    tokenizer_model: str | None
    vocab_size: int | None
    fingerprint: str


@dataclass(frozen=True)
class KeyDocuments:
    """Documents of one key of one block.

    A text is empty when it is "" or the tokenizer finds no token in it; it gives no document.

    Attributes:
        token_bytes: tokens laid end to end, in the stored type.
        lengths: int64 `[documents]`, tokens of each.
        largest_id: largest token id, -1 for none.
        num_empty: texts that gave no document.
    """

    token_bytes: bytes
    lengths: NDArray[np.int64]
    largest_id: int
    num_empty: int


@dataclass(frozen=True)
class EncodedBlock:
    """Everything a block of lines gave: records = written + empty (per key) + bad."""

    num_records: int
    documents: list[KeyDocuments]
    bad: list[BadRecord]


class BlockEncoder:
    """Turns blocks of lines into token bytes; a pure function of (settings, block).

    Args:
        settings: what to do.
        tokenizer: the tokenizer of `settings`.
    """

    def __init__(self, settings: EncodeSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer

    def __call__(self, block: LineBlock) -> EncodedBlock:
        """Documents of each key in the order of the lines, and the lines that gave none.

        Raises:
            TokenizerError: the tokenizer gave an id outside its own vocabulary.
        """
        lines = block.lines()
        texts: list[list[str]] = [[] for _ in self._settings.keys]
        bad: list[BadRecord] = []
        for place, line in enumerate(lines):
            try:
                record = parse_record(line, self._settings.keys)
                self._check_tokenizable(record)
            except RecordError as error:
                bad.append(BadRecord(block.file_index, block.first_line + place, error.reason, error.detail, line))
                continue
            for column, text in zip(texts, record, strict=True):
                column.append(text)
        return EncodedBlock(len(lines), [self._documents(column) for column in texts], bad)

    def _documents(self, texts: list[str]) -> KeyDocuments:
        batch = self._tokenizer.encode_batch([text for text in texts if text])
        return self._pack(batch, len(texts))

    def _check_tokenizable(self, record: Sequence[str]) -> None:
        """NullTokenizer alone can refuse a text; its refusal concerns one record, not the run."""
        if self._settings.tokenizer_type != "NullTokenizer":
            return
        try:
            self._tokenizer.encode_batch(record)
        except TokenizerError as error:
            raise RecordError("not tokenizable", str(error)) from None

    def _pack(self, batch: EncodedBatch, num_texts: int) -> KeyDocuments:
        tokens, lengths = batch.ids, batch.lengths
        if tokens.size and (tokens.min() < 0 or tokens.max() >= self._tokenizer.vocab_size):
            raise TokenizerError(
                f"the tokenizer gave ids from {tokens.min()} to {tokens.max()}",
                f"Its vocabulary has ids 0 to {self._tokenizer.vocab_size - 1}",
                "The tokenizer file is inconsistent; use another",
            )
        written = lengths[lengths > 0]
        if self._settings.append_eod and written.size:
            tokens = np.insert(tokens, np.cumsum(written), self._tokenizer.eod_id)
            written = written + 1
        return KeyDocuments(
            tokens.astype(self._settings.dtype).tobytes(),
            written,
            int(tokens.max()) if tokens.size else -1,
            num_texts - len(written),
        )


_ENCODERS: dict[str, BlockEncoder] = {}  # one entry per worker process, made by `start_worker`


def start_worker(settings: EncodeSettings, parent: int) -> None:
    """Prepare a worker process: its tokenizer, no reaction to Ctrl-C, and an end when its parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    tokenizer = build_tokenizer(settings.tokenizer_type, settings.tokenizer_model, settings.vocab_size)
    if tokenizer.fingerprint != settings.fingerprint:
        raise TokenizerError(f"{settings.tokenizer_model} changed during the run", fix="Run again")
    _ENCODERS["worker"] = BlockEncoder(settings, tokenizer)


def encode_in_worker(block: LineBlock) -> EncodedBlock:
    """Encode a block with the encoder that `start_worker` made in this process."""
    return _ENCODERS["worker"](block)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
