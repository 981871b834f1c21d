"""Writes Megatron's indexed dataset, byte for byte as megatron-core's builder does (law L4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.store.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, bin_path, idx_path
from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.errors import DataError

_CODES = {dtype: code for code, dtype in DTYPE_CODES.items()}
_MAX_DOCUMENT_TOKENS = 2**31 - 1
_BLOCK = 1 << 16  # documents held in memory at a time while the index is written


@dataclass(frozen=True)
class WriterState:
    """How far a writer is: what a later one needs to go on where a killed one stopped."""

    documents: int
    tokens: int


class IndexedWriter:
    """Streams documents into `PREFIX.bin`, then writes `PREFIX.idx`; all appears only in `publish`.

    Memory is constant: the lengths of the documents wait in a file beside the others until the index is made.

    Args:
        prefix: path of the dataset without suffixes.
        dtype: integer type of the stored tokens.
        with_loss_mask: write the loss mask `PREFIX.loss_mask` too.
        resume: go on with the unpublished files of a killed run, from this state; None begins anew.

    Raises:
        DataError: the folder is not writable, another run writes the same dataset, or what a killed run left is
            shorter than `resume` says.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype | type,
        with_loss_mask: bool = False,
        resume: WriterState | None = None,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.num_documents = resume.documents if resume else 0
        self.num_tokens = resume.tokens if resume else 0
        self._mask_path = loss_mask_path(prefix)
        self._files: list[PendingFile] = []
        try:
            self.bin_file = self._open(bin_path(prefix), self.num_tokens * self.dtype.itemsize, resume)
            self._lengths = self._open(Path(f"{prefix}.lengths"), 4 * self.num_documents, resume)
            self.mask_file = self._open(self._mask_path, self.num_tokens, resume) if with_loss_mask else None
            self.idx_file = self._open(idx_path(prefix), 0, None)
        except DataError:
            self.discard() if resume is None else self.keep()
            raise

    @property
    def state(self) -> WriterState:
        """How far this writer is; on disk, and so good to resume from, after `sync`."""
        return WriterState(self.num_documents, self.num_tokens)

    def append(
        self, token_bytes: bytes | memoryview, lengths: NDArray[np.int64], mask_bytes: bytes | None = None
    ) -> None:
        """Append documents, one sequence each.

        Args:
            token_bytes: their tokens laid end to end, in `dtype`.
            lengths: int64 `[documents]`, tokens of each.
            mask_bytes: one code of the loss mask per token, for a writer with a mask.

        Raises:
            DataError: a document has more tokens than an int32 length can say, or the disk is full.
        """
        total = int(lengths.sum())
        if len(token_bytes) != total * self.dtype.itemsize:
            raise ValueError(f"{len(token_bytes)} bytes for {total} tokens of {self.dtype}")
        if (mask_bytes is None) != (self.mask_file is None) or (mask_bytes is not None and len(mask_bytes) != total):
            raise ValueError("a writer with a loss mask needs one code per token, another one none")
        if lengths.size and lengths.max() > _MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"a document of {lengths.max()} tokens cannot be stored",
                f"The format allows {_MAX_DOCUMENT_TOKENS} tokens in one document",
                "Cut it into several documents",
            )
        self.bin_file.write(token_bytes)
        self._lengths.write(lengths.astype("<i4").tobytes())
        if self.mask_file is not None and mask_bytes is not None:
            self.mask_file.write(mask_bytes)
        self.num_documents += len(lengths)
        self.num_tokens += total

    def append_document(self, tokens: ArrayLike, mask: bytes | None = None) -> None:
        """Append one document, `[length]` integers.

        Raises:
            DataError: a token does not fit `dtype`; nothing is ever wrapped.
        """
        row = np.asarray(tokens, dtype=np.int64) if not isinstance(tokens, np.ndarray) else tokens
        limits = np.iinfo(self.dtype)
        if row.size and (row.min() < limits.min or row.max() > limits.max):
            raise DataError(f"token ids from {row.min()} to {row.max()} do not fit the stored type {self.dtype}")
        self.append(row.astype(self.dtype).tobytes(), np.array([row.size], np.int64), mask)

    def sync(self) -> None:
        """Force everything appended to disk; the files stay open and without their final names."""
        for file in self._files:
            file.sync()

    def finish(self) -> None:
        """Write the index and force the files to disk; none has its final name yet."""
        for file in self._files:
            file.sync()
        documents, itemsize = self.num_documents, self.dtype.itemsize
        self.idx_file.write(HEADER.pack(MAGIC, VERSION, _CODES[self.dtype], documents, documents + 1))
        for lengths in self._length_blocks():
            self.idx_file.write(lengths.tobytes())
        begin = 0
        for lengths in self._length_blocks():
            ends = np.cumsum(lengths, dtype="<i8") * itemsize + begin
            self.idx_file.write((ends - lengths * np.int64(itemsize)).tobytes())
            begin = int(ends[-1])
        for first in range(0, documents + 1, _BLOCK):
            self.idx_file.write(np.arange(first, min(first + _BLOCK, documents + 1), dtype="<i8").tobytes())
        for output in (self.bin_file, self.mask_file, self.idx_file):
            if output is not None:
                output.finish()

    def publish(self) -> None:
        """Give the finished files their final names, the index last: no reader opens a dataset without it.

        `discard` then removes the lengths; until then a publication that was cut short can be resumed.
        """
        self.idx_file.path.unlink(missing_ok=True)
        self._mask_path.unlink(missing_ok=True)
        if self.mask_file is not None:
            self.mask_file.publish()
        self.bin_file.publish()
        self.idx_file.publish()

    def discard(self) -> None:
        """Remove what was not published."""
        for file in self._files:
            file.discard()

    def keep(self) -> None:
        """Close the unpublished files but leave them on disk, for a run that resumes from them."""
        for file in self._files:
            file.keep()

    def _open(self, path: Path, size_bytes: int, resume: WriterState | None) -> PendingFile:
        file = PendingFile(path) if resume is None else PendingFile.resume(path, size_bytes)
        self._files.append(file)
        return file

    def _length_blocks(self) -> Iterator[NDArray[np.int32]]:
        with self._lengths.partial.open("rb") as stream:
            while block := stream.read(4 * _BLOCK):
                yield np.frombuffer(block, "<i4")


def write_indexed(prefix: str | Path, documents: Iterable[ArrayLike], dtype: np.dtype | type) -> None:
    """Write and publish a dataset of documents already tokenized, without a manifest.

    Raises:
        DataError: a token does not fit `dtype`, or the output cannot be written.
    """
    writer = IndexedWriter(prefix, dtype)
    try:
        for document in documents:
            writer.append_document(document)
        writer.finish()
        writer.publish()
    finally:
        writer.discard()
