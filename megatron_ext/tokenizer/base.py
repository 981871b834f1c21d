"""What every tokenizer offers, and how its file is read and fingerprinted."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext.errors import TokenizerError


@dataclass(frozen=True)
class EncodedBatch:
    """Token ids of several texts laid end to end.

    Attributes:
        ids: int32 `[t]`, all texts one after the other.
        lengths: int64 `[number of texts]`, tokens of each text; their sum is t.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


class Tokenizer(ABC):
    """Maps text to ids in [0, vocab_size) and back; a pure function of its file.

    Attributes:
        type_name: the value of --tokenizer-type that makes it.
        vocab_size: number of ids, before any padding of the embedding.
        eod_id: the id that ends a document.
        bos_id: the id that begins a text, or None.
        pad_id: the id that fills a batch, or None.
        fingerprint: sha256 of what determines the mapping; two runs with equal fingerprints give equal ids.
        files: the files to hand on with a model, the mapping itself first; empty when there is none.
        engine: what turns text into ids: "native", or the name of the library that defines the file format.
    """

    type_name: str
    vocab_size: int
    eod_id: int
    bos_id: int | None
    pad_id: int | None
    fingerprint: str
    files: list[Path]
    engine: str

    def encode(self, text: str) -> list[int]:
        """Ids of one text, without an end-of-document id."""
        return self.encode_batch([text]).ids.tolist()

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts; each text's ids equal those of `encode` on it alone."""

    def encode_plain_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of the bare texts: nothing is put before or behind them. For texts that are parts of a document."""
        return self.encode_batch(texts)

    def encode_reference_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """What `encode_batch` must give, from the library that defines the file format."""
        return self.encode_batch(texts)

    def token_id(self, name: str) -> int | None:
        """The id of the piece or special token with exactly this name; None when there is none."""
        return None

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids.

        Raises:
            TokenizerError: an id is outside [0, vocab_size).
        """

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise TokenizerError when an id is outside [0, vocab_size)."""
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise TokenizerError(
                    f"token id {index} cannot be decoded", f"The vocabulary has ids 0 to {self.vocab_size - 1}"
                )


def batch_of_lists(lists: Sequence[Sequence[int]]) -> EncodedBatch:
    """Join lists of ids into one EncodedBatch."""
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return EncodedBatch(np.fromiter(chain.from_iterable(lists), np.int32, int(lengths.sum())), lengths)


def surrounded(
    batch: EncodedBatch, prefix: Sequence[int], suffix: Sequence[int] = (), also_empty: bool = True
) -> EncodedBatch:
    """The ids of `batch` with `prefix` before and `suffix` behind each text.

    Args:
        batch: what is surrounded.
        prefix: ids to put before each text.
        suffix: ids to put behind it.
        also_empty: whether a text without ids gets them too.
    """
    added = len(prefix) + len(suffix)
    if not added or not len(batch.lengths):
        return batch
    rows = np.flatnonzero(batch.lengths) if not also_empty else np.arange(len(batch.lengths))
    lengths = batch.lengths.copy()
    lengths[rows] += added
    ids = np.empty(len(batch.ids) + added * len(rows), np.int32)
    is_text = np.ones(len(ids), bool)
    ends = np.cumsum(lengths)[rows]
    for offset, index in enumerate(prefix):
        ids[ends - lengths[rows] + offset] = index
        is_text[ends - lengths[rows] + offset] = False
    for offset, index in enumerate(reversed(suffix), 1):
        ids[ends - offset] = index
        is_text[ends - offset] = False
    ids[is_text] = batch.ids
    return EncodedBatch(ids, lengths)


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of a tokenizer file.

    Raises:
        TokenizerError: it is missing, a directory, unreadable or empty.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenizerError(
            f"the tokenizer file {path} cannot be read ({reason})",
            fix="Give the path of an existing file with --tokenizer-model",
        ) from None
    if not content:
        raise TokenizerError(f"the tokenizer file {path} is empty", fix="Give a complete file with --tokenizer-model")
    return content


def fingerprint_of(content: bytes) -> str:
    """The sha256 of `content`, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
