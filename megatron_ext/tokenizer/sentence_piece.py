"""SentencePiece model files under the three names that Megatron-LM gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import (
    EncodedBatch,
    Tokenizer,
    batch_of_lists,
    fingerprint_of,
    read_tokenizer_file,
    surrounded,
)
from megatron_ext.tokenizer.engines import NativeEncoder, choose_engine
from megatron_ext.tokenizer.sentence_piece_native import native_sentence_piece

_EOD_PIECES = ("<eod>", "<EOD>", "<|endoftext|>")


class GPTSentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose end-of-sentence id ends a document."""

    type_name = "GPTSentencePieceTokenizer"
    prepends_bos = False

    def __init__(self, path: Path, engine: str = "auto") -> None:
        content = read_tokenizer_file(path)
        self._model = _load(path, content)
        self._native = choose_engine(
            engine, lambda: NativeEncoder(native_sentence_piece(content), self._encode_by_library), str(path)
        )
        self.engine = "native" if self._native else "sentencepiece"
        self.vocab_size = self._model.get_piece_size()
        self.bos_id = _id_or_none(self._model.bos_id())
        self.pad_id = _id_or_none(self._model.pad_id())
        self.fingerprint = fingerprint_of(content)
        self.files = [path]
        self.eod_id = self._find_eod(path)
        if self.prepends_bos and self.bos_id is None:
            raise TokenizerError(
                f"{path} has no beginning-of-sentence piece", f"--tokenizer-type {self.type_name} begins texts with it"
            )

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts; where the type says so, each text that has any ids is begun by bos."""
        return self._begun_by_bos(self.encode_plain_batch(texts))

    def encode_plain_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of the bare texts, whatever the type adds to a document."""
        return self._native.encode(texts) if self._native else self._encode_by_library(texts)

    def encode_reference_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """The ids that the sentencepiece library gives."""
        return self._begun_by_bos(self._encode_by_library(texts))

    def token_id(self, name: str) -> int | None:
        """The id of a piece; None when the model has no such piece."""
        index = self._model.piece_to_id(name)
        return int(index) if self._model.id_to_piece(index) == name else None

    def _begun_by_bos(self, batch: EncodedBatch) -> EncodedBatch:
        if not self.prepends_bos or self.bos_id is None:
            return batch
        return surrounded(batch, [self.bos_id], also_empty=False)

    def _encode_by_library(self, texts: Sequence[str]) -> EncodedBatch:
        texts = list(texts)
        if not hasattr(self._model, "encode_as_numpy"):  # SentencePiece before 0.2.3
            return batch_of_lists(self._model.encode(texts, num_threads=1))
        rows = self._model.encode_as_numpy(texts, num_threads=1) if texts else []
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.concatenate(rows, dtype=np.int32) if rows else np.empty(0, np.int32)
        return EncodedBatch(ids, lengths)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; control pieces (bos, eos) give no text."""
        self.check_ids(ids)
        return self._model.decode([int(index) for index in ids])

    def _find_eod(self, path: Path) -> int:
        eos = _id_or_none(self._model.eos_id())
        if eos is None:
            raise TokenizerError(
                f"{path} has no end-of-sentence piece, so nothing can end a document",
                fix="Train the model with an eos id (tools/train_tokenizer.py does)",
            )
        return eos


class SentencePieceTokenizer(GPTSentencePieceTokenizer):
    """A SentencePiece model with its own end-of-document piece where it has one.

    The first of `<eod>`, `<EOD>`, `<|endoftext|>` in the vocabulary ends a document; a model without any of them ends
    documents with its end-of-sentence id. No id is ever added to the vocabulary of the file.
    """

    type_name = "SentencePieceTokenizer"

    def _find_eod(self, path: Path) -> int:
        for piece in _EOD_PIECES:
            index = self._model.piece_to_id(piece)
            if index != self._model.unk_id():
                return index
        return super()._find_eod(path)


class Llama2Tokenizer(GPTSentencePieceTokenizer):
    """A SentencePiece model whose texts begin with the bos id, as Megatron-LM's type of this name does."""

    type_name = "Llama2Tokenizer"
    prepends_bos = True


def _load(path: Path, content: bytes) -> sentencepiece.SentencePieceProcessor:
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=content)
        size = model.get_piece_size()
    except (RuntimeError, OSError, ValueError, TypeError):
        size = 0
    if size <= 0:
        raise TokenizerError(
            f"{path} is not a SentencePiece model, or it is damaged",
            fix="Give a .model file, or use --tokenizer-type HuggingFaceTokenizer for a tokenizer.json",
        )
    return model


def _id_or_none(index: int) -> int | None:
    return int(index) if index >= 0 else None
