"""What is checked of a dataset's tokens and loss mask while their bytes pass by once, block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_ext.data.store.indexed import IndexedDataset, bin_path
from megatron_ext.data.store.loss_mask import CODES, NOT_LEARNED, loss_mask_path
from megatron_ext.data.store.manifest import FileFacts
from megatron_ext.errors import DataError

_DOCUMENTS = 1 << 16  # documents looked at in one go
_AGAIN = "Make the dataset again, or copy it again"


class ContentCheck(Protocol):
    """Sees all bytes of one file, then says what it found."""

    name: str

    def __call__(self, block: memoryview) -> None:
        """Look at the next bytes of the file."""

    def verdict(self) -> str:
        """What was found, after the last block.

        Raises:
            DataError: the file is damaged.
        """


class Checksum:
    """Whether the bytes of a file are those that were written.

    Args:
        path: the file.
        facts: what the manifest says about it.
    """

    def __init__(self, path: Path, facts: FileFacts) -> None:
        self.name = f"sha256 of {path.suffix}"
        self._path, self._facts, self._hash = path, facts, hashlib.sha256()

    def __call__(self, block: memoryview) -> None:
        """Look at the next bytes."""
        self._hash.update(block)

    def verdict(self) -> str:
        """The checksum.

        Raises:
            DataError: it is not the one in the manifest.
        """
        found = self._hash.hexdigest()
        if found != self._facts.sha256:
            raise DataError(
                f"{self._path} is damaged: its sha256 is {found}", f"The manifest says {self._facts.sha256}", _AGAIN
            )
        return found


class TokenRange:
    """The smallest and the largest id of `.bin`.

    Args:
        dataset: the opened dataset.
    """

    name = "token ids"

    def __init__(self, dataset: IndexedDataset) -> None:
        self._path, self._dtype = bin_path(dataset.prefix), dataset.dtype
        self._manifest = dataset.manifest
        self.smallest, self.largest = 0, -1

    def __call__(self, block: memoryview) -> None:
        """Look at the next bytes, whole tokens."""
        tokens = np.frombuffer(block, self._dtype)
        self.smallest = min(self.smallest, int(tokens.min()))
        self.largest = max(self.largest, int(tokens.max()))

    def verdict(self) -> str:
        """What was found, after the last block.

        Raises:
            DataError: an id is negative, outside the vocabulary, or larger than the manifest says.
        """
        manifest = self._manifest
        if self.smallest < 0:
            raise DataError(f"{self._path} holds the id {self.smallest}", "No id is negative", _AGAIN)
        if manifest is None:
            return f"largest {self.largest}"
        if self.largest >= manifest.tokenizer.vocab_size:
            raise DataError(
                f"{self._path} holds the id {self.largest}",
                f"The vocabulary of its tokenizer has ids 0 to {manifest.tokenizer.vocab_size - 1}",
                _AGAIN,
            )
        if self.largest != manifest.largest_id:
            raise DataError(
                f"the largest id in {self._path} is {self.largest}", f"The manifest says {manifest.largest_id}", _AGAIN
            )
        return f"largest {self.largest}, vocabulary {manifest.tokenizer.vocab_size}"


class DocumentEnds:
    """Whether each document ends with the end-of-document id.

    Args:
        dataset: the opened dataset.
        eod_id: the id.
    """

    name = "document ends"

    def __init__(self, dataset: IndexedDataset, eod_id: int) -> None:
        self._dataset, self._eod_id = dataset, eod_id
        self._first_token = self._document = self._wrong = 0
        self._example = 0

    def __call__(self, block: memoryview) -> None:
        """Look at the next bytes, whole tokens."""
        tokens = np.frombuffer(block, self._dataset.dtype)
        limit = self._first_token + len(tokens)
        while self._document < self._dataset.num_documents:
            last = min(self._document + _DOCUMENTS, self._dataset.num_documents)
            offsets = self._dataset.document_offsets(self._document, last)
            ended = int(np.searchsorted(offsets[1:], limit, "right"))
            self._look(tokens, offsets[: ended + 1])
            self._document += ended
            if self._document < last:
                break
        self._first_token = limit

    def verdict(self) -> str:
        """What was found, after the last block.

        Raises:
            DataError: a document ends otherwise.
        """
        wrong = self._wrong + self._dataset.num_documents - self._document  # without a single token: never looked at
        if wrong:
            raise DataError(
                f"{wrong} documents of {self._dataset.prefix} do not end with the end-of-document id "
                f"{self._eod_id}, the first of them is document {self._example}",
                "The manifest says that each document ends with it",
                _AGAIN,
            )
        return f"each document ends with {self._eod_id}"

    def _look(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        """Documents that end inside `tokens`; a document without tokens has no end and counts as wrong."""
        wrong = offsets[1:] == offsets[:-1]
        places = offsets[1:][~wrong] - 1 - self._first_token
        wrong[~wrong] = tokens[places] != self._eod_id
        if wrong.any():
            self._example = self._example if self._wrong else self._document + int(wrong.argmax())
            self._wrong += int(wrong.sum())


class MaskCodes:
    """How often each code stands in a loss mask.

    Args:
        prefix: prefix of the dataset.
    """

    name = "loss-mask codes"

    def __init__(self, prefix: str) -> None:
        self._path = loss_mask_path(prefix)
        self._largest = 0
        self.counts = dict.fromkeys(CODES, 0)

    def __call__(self, block: memoryview) -> None:
        """Look at the next bytes."""
        codes = np.frombuffer(block, np.uint8)
        self._largest = max(self._largest, int(codes.max()))
        for code in CODES:
            self.counts[code] += int(np.count_nonzero(codes == code))

    def verdict(self) -> str:
        """What was found, after the last block.

        Raises:
            DataError: there is a code that does not exist.
        """
        if self._largest not in CODES:
            raise DataError(
                f"{self._path} holds the code {self._largest}", f"The codes are {', '.join(map(str, CODES))}", _AGAIN
            )
        total, learned = sum(self.counts.values()), sum(self.counts[code] for code in CODES if code != NOT_LEARNED)
        return f"{learned} of {total} tokens are learned"
