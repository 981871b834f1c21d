"""Joins datasets: the bytes end to end, one index, one manifest; all shards of a run give what one run gives."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.store.dataset_names import quarantine_path
from megatron_ext.data.store.file_scan import scan_file
from megatron_ext.data.store.indexed import DTYPE_CODES, HEADER, MAGIC, VERSION, IndexedDataset, bin_path, idx_path
from megatron_ext.data.store.loss_mask import LEARNED, loss_mask_path
from megatron_ext.data.store.manifest import DatasetManifest, FileFacts, manifest_path
from megatron_ext.data.store.merge_rules import are_shards, joined_manifest, open_parts
from megatron_ext.data.store.merged_quarantine import join_quarantines
from megatron_ext.errors import DataError

_CODES = {dtype: code for code, dtype in DTYPE_CODES.items()}
_BLOCK = 1 << 18  # entries of an index, or codes of a mask, in memory at a time
Advance = Callable[[int], object]


@dataclass(frozen=True)
class MergeRequest:
    """What to join into what.

    Attributes:
        prefixes: the datasets, paths without the suffixes.
        output_prefix: the joined dataset, a path without the suffixes.
        overwrite: replace an output that exists.
    """

    prefixes: tuple[str, ...]
    output_prefix: str
    overwrite: bool = False


@dataclass(frozen=True)
class MergeResult:
    """What was written."""

    output_prefix: str
    num_parts: int
    num_documents: int
    num_tokens: int
    manifest: DatasetManifest | None


def bytes_to_copy(prefixes: Sequence[str]) -> int:
    """How many bytes a merge of these datasets will pass by, for a progress bar."""
    paths = [name(prefix) for prefix in prefixes for name in (bin_path, idx_path, loss_mask_path)]
    return sum(path.stat().st_size for path in paths if path.is_file())


def merge_datasets(request: MergeRequest, advance: Advance = lambda _: None) -> MergeResult:
    """Join datasets of one tokenizer and token type; nobody sees the result before it is whole (law L7).

    `.bin` is the parts' tokens end to end, `.idx` what megatron-core's builder makes of them. Where some parts have a
    loss mask, the others are learned whole. Each part is compared with its own checksums while it is copied. The
    shards of one run are put in order by their number, and have to be all there; then every file, quarantine and
    manifest among them, has the bytes that one run writes. Memory is constant.

    Args:
        request: what to join.
        advance: told how many bytes were read, again and again.

    Raises:
        DataError: parts that do not fit together, a damaged part, an output that exists or cannot be written.
    """
    if not request.prefixes:
        raise DataError("there is nothing to join")
    parts = open_parts(request.prefixes, request.output_prefix)
    manifests = [part.manifest for part in parts if part.manifest is not None]
    _refuse_existing(request)
    _make_folder(Path(request.output_prefix).parent)
    with contextlib.ExitStack() as pending:
        outputs = _Outputs(request, parts, pending)
        quarantine = _quarantine(request, parts, manifests, pending) if are_shards(manifests) else None
        outputs.copy(advance)
        manifest = outputs.write_manifest(manifests) if manifests else None
        if quarantine is not None:
            quarantine.publish()
        outputs.publish()
    tokens, documents = (sum(getattr(part, name) for part in parts) for name in ("num_tokens", "num_documents"))
    return MergeResult(request.output_prefix, len(parts), documents, tokens, manifest)


class _Outputs:
    """The files of the joined dataset, each discarded when `pending` ends before it was published."""

    def __init__(self, request: MergeRequest, parts: Sequence[IndexedDataset], pending: contextlib.ExitStack) -> None:
        self._prefix, self._parts, self._pending = request.output_prefix, parts, pending
        self._bin = self._open(bin_path(self._prefix))
        with_mask = any(part.loss_mask is not None for part in parts)
        self._mask = self._open(loss_mask_path(self._prefix)) if with_mask else None
        self._idx = self._open(idx_path(self._prefix))
        self._manifest: PendingFile | None = None

    def copy(self, advance: Advance) -> None:
        for part in self._parts:
            _copy_checked(part, ".bin", self._bin, advance)
            if part.manifest is not None:
                _copy_checked(part, ".idx", None, advance)
            if self._mask is not None:
                _copy_mask(part, self._mask, advance)
        for piece in _index_pieces(self._parts):
            self._idx.write(piece)
        for file in (self._bin, self._mask, self._idx):
            if file is not None:
                file.finish()

    def write_manifest(self, manifests: Sequence[DatasetManifest]) -> DatasetManifest:
        files = {".bin": self._bin, ".idx": self._idx, ".loss_mask": self._mask}
        facts = {name: FileFacts(file.size_bytes, file.sha256) for name, file in files.items() if file is not None}
        manifest = joined_manifest(manifests, facts)
        self._manifest = self._open(manifest_path(self._prefix))
        self._manifest.write(manifest.to_json().encode("utf-8"))
        self._manifest.finish()
        return manifest

    def publish(self) -> None:
        """The index last but for the manifest: no reader opens a dataset without it."""
        for name in (manifest_path, idx_path, loss_mask_path):
            name(self._prefix).unlink(missing_ok=True)
        for file in (self._mask, self._bin, self._idx, self._manifest):
            if file is not None:
                file.publish()

    def _open(self, path: Path) -> PendingFile:
        file = PendingFile(path)
        self._pending.callback(file.discard)
        return file


def _refuse_existing(request: MergeRequest) -> None:
    names = (bin_path, idx_path, loss_mask_path, manifest_path)
    existing = [str(name(request.output_prefix)) for name in names if name(request.output_prefix).exists()]
    if existing and not request.overwrite:
        raise DataError(
            f"the output {existing[0]} exists already",
            fix="Give --overwrite to replace it, or choose another --output-prefix",
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"the folder {folder} of --output-prefix cannot be made ({error.strerror})") from None


def _copy_checked(part: IndexedDataset, suffix: str, output: PendingFile | None, advance: Advance) -> None:
    """Append a file of a part to `output`, if any; its bytes have to be those that its manifest speaks of."""
    path, digest = Path(f"{part.prefix}{suffix}"), hashlib.sha256()
    writers = [output.write] if output is not None else []
    scan_file(path, [*writers, digest.update], advance)
    if part.manifest is not None and digest.hexdigest() != part.manifest.files[suffix].sha256:
        raise DataError(
            f"{path} is damaged: its sha256 is {digest.hexdigest()}",
            f"Its manifest says {part.manifest.files[suffix].sha256}",
            "Make it again, or copy it again",
        )


def _copy_mask(part: IndexedDataset, output: PendingFile, advance: Advance) -> None:
    if part.loss_mask is not None:
        _copy_checked(part, ".loss_mask", output, advance)
        return
    for first in range(0, part.num_tokens, _BLOCK):
        output.write(bytes([LEARNED]) * min(_BLOCK, part.num_tokens - first))


def _index_pieces(parts: Sequence[IndexedDataset]) -> Iterator[bytes]:
    """The bytes of the joined `.idx`: each of its three tables goes through all parts."""
    sequences, documents = sum(part.num_sequences for part in parts), sum(part.num_documents for part in parts)
    yield HEADER.pack(MAGIC, VERSION, _CODES[parts[0].dtype], sequences, documents + 1)
    for part in parts:
        yield from _shifted(part.lengths, 0)
    first_byte = 0
    for part in parts:
        yield from _shifted(part.pointers, first_byte)
        first_byte += part.num_tokens * part.dtype.itemsize
    first_sequence = 0
    for part in parts:
        yield from _shifted(part.document_boundaries[:-1], first_sequence)
        first_sequence += part.num_sequences
    yield np.array([sequences], "<i8").tobytes()


def _shifted(table: np.ndarray, amount: int) -> Iterator[bytes]:
    for first in range(0, len(table), _BLOCK):
        block = table[first : first + _BLOCK]
        yield (block + block.dtype.type(amount)).tobytes()


def _quarantine(
    request: MergeRequest,
    parts: Sequence[IndexedDataset],
    manifests: Sequence[DatasetManifest],
    pending: contextlib.ExitStack,
) -> PendingFile | None:
    """The joined quarantine of all shards, finished but not published; None when there is nothing to publish.

    One file serves all keys of a run: the key that is joined first writes it, for the others it is there already.
    """
    key = manifests[0].key
    sources = [quarantine_path(part.prefix, key) for part in parts]
    path = quarantine_path(request.output_prefix, key)
    if not any(manifest.records.quarantined for manifest in manifests):
        if request.overwrite:
            path.unlink(missing_ok=True)
        return None
    file = PendingFile(path)
    pending.callback(file.discard)
    join_quarantines(sources, manifests, file)
    file.finish()
    if path.exists() and not request.overwrite and not _has_sha256(path, file.sha256):
        raise DataError(
            f"the output {path} exists already",
            fix="Give --overwrite to replace it, or choose another --output-prefix",
        )
    return file


def _has_sha256(path: Path, wanted: str) -> bool:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == wanted
