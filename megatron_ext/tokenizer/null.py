"""Text that already is numbers: for tests, and for corpora tokenized elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer, batch_of_lists, fingerprint_of


class NullTokenizer(Tokenizer):
    """Reads whitespace-separated ids 0 .. n-1; id n ends a document, so the vocabulary has n + 1 ids.

    Source: megatron-core 0.16.1's null tokenizer has the same vocabulary and end-of-document id.
    """

    type_name = "NullTokenizer"
    engine = "numbers"

    def __init__(self, num_plain_ids: int) -> None:
        if num_plain_ids < 1:
            raise TokenizerError(f"--vocab-size {num_plain_ids} is not a number of ids", "At least 1 is needed")
        self.vocab_size = num_plain_ids + 1
        self.eod_id = num_plain_ids
        self.bos_id: int | None = None
        self.pad_id: int | None = None
        self.fingerprint = fingerprint_of(f"NullTokenizer {num_plain_ids}".encode())
        self.files: list[Path] = []

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts of numbers.

        Raises:
            TokenizerError: a word is not a decimal number in [0, vocab_size).
        """
        return batch_of_lists([[self._number(word) for word in text.split()] for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        """The ids in decimal, separated by spaces."""
        self.check_ids(ids)
        return " ".join(str(int(index)) for index in ids)

    def _number(self, word: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) < self.vocab_size):
            raise TokenizerError(
                f"{word[:40]!r} is not a token id", f"NullTokenizer reads numbers from 0 to {self.vocab_size - 1}"
            )
        return int(word)
