"""Writes Megatron's indexed dataset, byte for byte as megatron-core's builder does (law L4)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megatron_ext.data.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, bin_path, idx_path
from megatron_ext.data.pending import PendingFile
from megatron_ext.errors import DataError

_CODES = {dtype: code for code, dtype in DTYPE_CODES.items()}
_MAX_DOCUMENT_TOKENS = 2**31 - 1


class IndexedWriter:
    """Streams documents into `PREFIX.bin`, then writes `PREFIX.idx`; both appear only in `publish`.

    Memory: four bytes per document.

    Args:
        prefix: path of the dataset without suffixes.
        dtype: integer type of the stored tokens.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype | type) -> None:
        self.dtype = np.dtype(dtype)
        self._lengths: list[NDArray[np.int32]] = []
        self.num_documents = 0
        self.num_tokens = 0
        self.bin_file = PendingFile(bin_path(prefix))
        try:
            self.idx_file = PendingFile(idx_path(prefix))
        except DataError:
            self.bin_file.discard()
            raise

    def append(self, token_bytes: bytes | memoryview, lengths: NDArray[np.int64]) -> None:
        """Append documents, one sequence each.

        Args:
            token_bytes: their tokens laid end to end, in `dtype`.
            lengths: int64 `[documents]`, tokens of each.

        Raises:
            DataError: a document has more tokens than an int32 length can say, or the disk is full.
        """
        total = int(lengths.sum())
        if len(token_bytes) != total * self.dtype.itemsize:
            raise ValueError(f"{len(token_bytes)} bytes for {total} tokens of {self.dtype}")
        if lengths.size and lengths.max() > _MAX_DOCUMENT_TOKENS:
            raise DataError(
                f"a document of {lengths.max()} tokens cannot be stored",
                f"The format allows {_MAX_DOCUMENT_TOKENS} tokens in one document",
                "Cut it into several documents",
            )
        self.bin_file.write(token_bytes)
        self._lengths.append(lengths.astype("<i4"))
        self.num_documents += len(lengths)
        self.num_tokens += total

    def append_document(self, tokens: ArrayLike) -> None:
        """Append one document, `[length]` integers.

        Raises:
            DataError: a token does not fit `dtype`; nothing is ever wrapped.
        """
        row = np.asarray(tokens, dtype=np.int64) if not isinstance(tokens, np.ndarray) else tokens
        limits = np.iinfo(self.dtype)
        if row.size and (row.min() < limits.min or row.max() > limits.max):
            raise DataError(f"token ids from {row.min()} to {row.max()} do not fit the stored type {self.dtype}")
        self.append(row.astype(self.dtype).tobytes(), np.array([row.size], np.int64))

    def finish(self) -> None:
        """Write the index and force both files to disk; neither has its final name yet."""
        self.bin_file.finish()
        lengths = np.concatenate(self._lengths) if self._lengths else np.empty(0, "<i4")
        ends = np.cumsum(lengths, dtype="<i8") * self.dtype.itemsize
        pointers = np.zeros(len(lengths), "<i8")
        pointers[1:] = ends[:-1]
        boundaries = np.arange(len(lengths) + 1, dtype="<i8")
        self.idx_file.write(HEADER.pack(MAGIC, VERSION, _CODES[self.dtype], len(lengths), len(boundaries)))
        for array in (lengths, pointers, boundaries):
            self.idx_file.write(array.tobytes())
        self.idx_file.finish()

    def publish(self) -> None:
        """Give both finished files their final names, the index last: no reader opens a dataset without it."""
        idx_path_final = self.idx_file.path
        idx_path_final.unlink(missing_ok=True)
        self.bin_file.publish()
        self.idx_file.publish()

    def discard(self) -> None:
        """Remove what was written; harmless after `publish`."""
        self.bin_file.discard()
        self.idx_file.discard()


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
