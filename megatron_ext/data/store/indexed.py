"""Megatron's indexed dataset on disk: its format, and a reader that checks what it reads.

`PREFIX.bin` holds the token values one after the other, no header. `PREFIX.idx`, little-endian and packed:

    offset        type       meaning
    0             9 bytes    "MMIDIDX" and two zero bytes
    9             uint64     version = 1
    17            uint8      dtype code of the tokens
    18            uint64     S, number of sequences
    26            uint64     D, number of document boundaries = documents + 1
    34            int32[S]   length of each sequence in tokens
    34 + 4S       int64[S]   byte offset of each sequence in .bin
    34 + 12S      int64[D]   document boundaries as sequence numbers, first 0, last S

Source: megatron-core 0.16.1, datasets/indexed_dataset.py.
"""

from __future__ import annotations

import hashlib
import struct
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.data.store.manifest import DatasetManifest, read_manifest
from megatron_ext.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[int, np.dtype] = {
    1: np.dtype("uint8"),
    2: np.dtype("int8"),
    3: np.dtype("int16"),
    4: np.dtype("int32"),
    5: np.dtype("int64"),
    6: np.dtype("float64"),
    7: np.dtype("float32"),
    8: np.dtype("uint16"),
}
MAX_UINT16_VOCAB = 65500
_CHECK_BLOCK = 1 << 22
_IDENTITY_BYTES = 1 << 20
_AGAIN = "Make the dataset again with tools/preprocess_data.py, or copy it again"


def bin_path(prefix: str | Path) -> Path:
    """The token file of a dataset."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The index file of a dataset."""
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The type Megatron stores tokens in: uint16 for vocabularies below 65500, int32 from there on.

    Source: megatron-core 0.16.1, DType.optimal_dtype.
    """
    return np.dtype("uint16") if vocab_size < MAX_UINT16_VOCAB else np.dtype("int32")


class IndexedDataset:
    """A dataset on disk, memory mapped; every array taken from it keeps the map alive.

    With a manifest, opening takes constant time whatever the size: it compares the sizes of the files, the header and
    both ends of each array with each other and with the manifest, and each method here checks the entries it reads
    against their neighbours. Without a manifest all of the index is checked at open. Whoever reads the arrays
    `lengths`, `pointers` and `document_boundaries` as they are calls `check_structure` first.

    Attributes:
        prefix: path without the suffixes.
        dtype: type of the stored tokens.
        tokens: `[t]` of `dtype`, all documents one after the other.
        lengths: int32 `[S]`, tokens of each sequence.
        pointers: int64 `[S]`, byte offset of each sequence in `.bin`.
        document_boundaries: int64 `[documents + 1]`, sequence numbers.
        manifest: what the writer said about it, or None for a dataset that Megatron-LM made.
        loss_mask: uint8 `[t]`, what is learned at each token (codes of loss_mask.py); None when all of them are.

    Raises:
        DataError: a file is missing or unreadable, or what was looked at contradicts something else.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self._index = raw = _map(idx_path(prefix), np.dtype("uint8"))
        self.dtype, sequences, boundaries = _read_header(idx_path(prefix), raw)
        _check_index_size(idx_path(prefix), len(raw), sequences, boundaries)
        lengths_end = HEADER.size + 4 * sequences
        pointers_end = lengths_end + 8 * sequences
        self.lengths: NDArray[np.int32] = raw[HEADER.size : lengths_end].view("<i4")
        self.pointers: NDArray[np.int64] = raw[lengths_end:pointers_end].view("<i8")
        self.document_boundaries: NDArray[np.int64] = raw[pointers_end : pointers_end + 8 * boundaries].view("<i8")
        self._structure_is_checked = False
        self.num_tokens = self._check_ends()
        self.manifest: DatasetManifest | None = read_manifest(prefix)
        if self.manifest is None:
            self.check_structure()
        self._check_token_bytes()
        self.tokens = _map(bin_path(prefix), self.dtype)
        if self.manifest is not None:
            self._check_manifest(self.manifest, len(raw))
        self.loss_mask: NDArray[np.uint8] | None = self._open_loss_mask()

    @property
    def num_sequences(self) -> int:
        """Number of sequences; one per document in what tools/preprocess_data.py writes."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.document_boundaries) - 1

    @cached_property
    def identity(self) -> str:
        """Text that differs between datasets with different tokens or masks: from the manifest's checksums.

        Without a manifest it is made of the sizes and of the first and last mebibyte of each file, in constant time.
        """
        if self.manifest is not None:
            return self.manifest.identity
        files = [self._index, self.tokens.view(np.uint8)] + ([] if self.loss_mask is None else [self.loss_mask])
        digest = hashlib.sha256(" ".join(str(file.nbytes) for file in files).encode())
        for file in files:
            digest.update(file[:_IDENTITY_BYTES].tobytes())
            digest.update(file[-_IDENTITY_BYTES:].tobytes())
        return f"ends-{digest.hexdigest()}"

    def check_structure(self) -> None:
        """Check the whole index: lengths, offsets and document boundaries. Reads all of it, the first time.

        Raises:
            DataError: an entry contradicts another one.
        """
        if not self._structure_is_checked:
            self._check_sequences()
            self._check_documents()
            self._structure_is_checked = True

    def token_offset(self, sequence: int) -> int:
        """Position in `tokens` at which a sequence begins; `num_sequences` gives the end of the last one.

        Raises:
            DataError: what the index says about the sequence contradicts what it says about the next one.
        """
        return self.num_tokens if sequence == self.num_sequences else self._bounds(sequence)[0]

    def sequence_bounds(self, sequences: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in `tokens` at which sequences `[k]` begin and end, int64 `[k]` each.

        Raises:
            DataError: what the index says about one of them contradicts what it says about the next sequence.
        """
        itemsize = self.dtype.itemsize
        begins, lengths = self.pointers[sequences], self.lengths[sequences].astype(np.int64)
        last = self.num_sequences - 1
        ends = np.where(sequences < last, self.pointers[np.minimum(sequences + 1, last)], self.num_tokens * itemsize)
        wrong = (begins < 0) | (begins % itemsize != 0) | (begins + lengths * itemsize != ends) | (lengths < 0)
        wrong |= ends > self.num_tokens * itemsize
        if wrong.any():
            raise self.damaged(int(sequences[int(wrong.argmax())]))
        return begins // itemsize, ends // itemsize

    def document_offsets(self, first: int, last: int) -> NDArray[np.int64]:
        """Positions in `tokens` at which documents `first` to `last` begin, int64 `[last - first + 1]`.

        `num_documents` as `last` gives the end of the last one.

        Raises:
            DataError: the index contradicts itself there.
        """
        sequences = self.document_boundaries[first : last + 1]
        if np.any(sequences < 0) or np.any(sequences > self.num_sequences) or np.any(sequences[1:] < sequences[:-1]):
            raise self._bad_boundaries()
        offsets = np.full(len(sequences), self.num_tokens, np.int64)
        begun = sequences < self.num_sequences
        offsets[begun] = self.sequence_bounds(sequences[begun])[0]
        return offsets

    def damaged(self, sequence: int | None = None) -> DataError:
        """The error for an index that contradicts itself, at a sequence if it is known."""
        where = "a sequence" if sequence is None else f"sequence {sequence}"
        return DataError(
            f"{idx_path(self.prefix)} is damaged: {where} does not end where the next one begins",
            "tools/verify_dataset.py tells all that is wrong with a dataset",
            _AGAIN,
        )

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, sequence: int) -> NDArray:
        """The tokens of one sequence, `[length]` of `dtype`, a view into the map."""
        if not -self.num_sequences <= sequence < self.num_sequences:
            raise IndexError(sequence)
        begin, end = self._bounds(sequence % self.num_sequences)
        return self.tokens[begin:end]

    def _bounds(self, sequence: int) -> tuple[int, int]:
        """As `sequence_bounds`, of one sequence, in less time."""
        itemsize, last = self.dtype.itemsize, sequence + 1 == self.num_sequences
        begin, length = int(self.pointers[sequence]), int(self.lengths[sequence])
        end = self.num_tokens * itemsize if last else int(self.pointers[sequence + 1])
        wrong = begin < 0 or length < 0 or begin % itemsize or begin + length * itemsize != end
        if wrong or end > self.num_tokens * itemsize:
            raise self.damaged(sequence)
        return begin // itemsize, end // itemsize

    def _check_ends(self) -> int:
        """Total number of tokens, as both ends of the arrays tell it; constant time."""
        bounds = self.document_boundaries
        if len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != self.num_sequences:
            raise self._bad_boundaries()
        if not self.num_sequences:
            return 0
        first, last, length = int(self.pointers[0]), int(self.pointers[-1]), int(self.lengths[-1])
        if first != 0 or last < 0 or length < 0 or last % self.dtype.itemsize:
            raise self.damaged(0 if first else self.num_sequences - 1)
        return last // self.dtype.itemsize + length

    def _check_sequences(self) -> None:
        """Lengths >= 0, and offsets = prefix sums of the lengths."""
        path, tokens, itemsize = idx_path(self.prefix), 0, self.dtype.itemsize
        for first in range(0, self.num_sequences, _CHECK_BLOCK):
            lengths = self.lengths[first : first + _CHECK_BLOCK].astype(np.int64)
            if lengths.min() < 0:
                raise DataError(
                    f"{path} is damaged: sequence {first + int(lengths.argmin())} has length {lengths.min()}",
                    fix=_AGAIN,
                )
            ends = np.cumsum(lengths) + tokens
            wrong = np.flatnonzero(self.pointers[first : first + _CHECK_BLOCK] != (ends - lengths) * itemsize)
            if wrong.size:
                index = int(wrong[0])
                said, computed = self.pointers[first + index], int((ends - lengths)[index]) * itemsize
                raise DataError(
                    f"{path} is damaged: sequence {first + index} is said to begin at byte {said}",
                    f"The lengths before it put it at byte {computed}",
                    _AGAIN,
                )
            tokens = int(ends[-1])

    def _check_documents(self) -> None:
        bounds = self.document_boundaries
        for first in range(0, len(bounds), _CHECK_BLOCK):
            block = bounds[first : first + _CHECK_BLOCK + 1]
            if np.any(block[1:] < block[:-1]):
                raise self._bad_boundaries()

    def _bad_boundaries(self) -> DataError:
        return DataError(
            f"{idx_path(self.prefix)} is damaged: its document boundaries do not rise from 0 to its "
            f"{self.num_sequences} sequences",
            fix=_AGAIN,
        )

    def _check_token_bytes(self) -> None:
        path, wanted = bin_path(self.prefix), self.num_tokens * self.dtype.itemsize
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})", fix=_AGAIN) from None
        if found != wanted:
            kind = "truncated" if found < wanted else "too long"
            raise DataError(
                f"{path} is {kind}: it has {found} bytes",
                f"{idx_path(self.prefix)} describes {self.num_tokens} {self.dtype} tokens, {wanted} bytes",
                _AGAIN,
            )

    def _open_loss_mask(self) -> NDArray[np.uint8] | None:
        path = loss_mask_path(self.prefix)
        expected = path.exists() if self.manifest is None else self.manifest.loss_mask_file is not None
        if path.exists() != expected:
            there, said = ("is there", "speaks of none") if path.exists() else ("is missing", "says there is one")
            raise DataError(f"{path} {there}, but the dataset's manifest {said}", fix=_AGAIN)
        if not expected:
            return None
        mask = _map(path, np.dtype("uint8"))
        if len(mask) != self.num_tokens:
            raise DataError(f"{path} has {len(mask)} bytes", f"The dataset has {self.num_tokens} tokens", _AGAIN)
        return mask

    def _check_manifest(self, manifest: DatasetManifest, idx_bytes: int) -> None:
        pairs = (
            ("tokens", manifest.tokens, self.num_tokens),
            ("documents", manifest.documents, self.num_documents),
            ("dtype", manifest.dtype, self.dtype.name),
            ("bytes in .bin", manifest.bin_file.size_bytes, self.num_tokens * self.dtype.itemsize),
            ("bytes in .idx", manifest.idx_file.size_bytes, idx_bytes),
        )
        for name, said, found in pairs:
            if said != found:
                raise DataError(
                    f"{self.prefix}.manifest.json does not belong to its dataset: it says {name} {said}, found {found}",
                    fix=_AGAIN,
                )


def _map(path: Path, dtype: np.dtype) -> NDArray:
    try:
        if path.stat().st_size == 0:
            return np.empty(0, dtype)
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path} cannot be read ({reason})",
            fix="Check the prefix given with --data-path: it is the path without .bin or .idx",
        ) from None


def _read_header(path: Path, raw: NDArray[np.uint8]) -> tuple[np.dtype, int, int]:
    if len(raw) < HEADER.size:
        raise DataError(f"{path} is truncated: {len(raw)} bytes", f"Its header alone has {HEADER.size}", _AGAIN)
    magic, version, code, sequences, boundaries = HEADER.unpack(raw[: HEADER.size].tobytes())
    if magic != MAGIC:
        raise DataError(f"{path} is not a Megatron index file: it does not begin with MMIDIDX", fix=_AGAIN)
    if version != VERSION:
        raise DataError(f"{path} has format version {version}", f"Version {VERSION} is the one that exists", _AGAIN)
    if code not in DTYPE_CODES or DTYPE_CODES[code].kind == "f":
        raise DataError(
            f"{path} has dtype code {code}", "Tokens are integers: codes 1 to 5 and 8 (uint8 to int64, uint16)", _AGAIN
        )
    return DTYPE_CODES[code], sequences, boundaries


def _check_index_size(path: Path, size: int, sequences: int, boundaries: int) -> None:
    wanted = HEADER.size + 12 * sequences + 8 * boundaries
    if size == wanted + sequences and sequences > 0:
        raise DataError(f"{path} is a multimodal dataset (it has a mode per sequence)", "Only text can be trained on")
    if size != wanted:
        raise DataError(
            f"{path} has {size} bytes",
            f"Its header speaks of {sequences} sequences and {boundaries} document boundaries, {wanted} bytes",
            _AGAIN,
        )
