"""Every check that a finished dataset can be put to, one after the other; nothing ends at the first failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ext.data.rows.spans import EOS
from megatron_ext.data.store.content_checks import Checksum, ContentCheck, DocumentEnds, MaskCodes, TokenRange
from megatron_ext.data.store.dataset_tokenizer import TokenizerFlags, open_tokenizer
from megatron_ext.data.store.file_scan import scan_file
from megatron_ext.data.store.indexed import IndexedDataset, bin_path, idx_path
from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.data.store.manifest import DatasetManifest, manifest_path, read_manifest
from megatron_ext.errors import DataError, MegatronExtError

_AGAIN = "Make the dataset again, or copy it again"


@dataclass(frozen=True)
class VerifyOptions:
    """How a dataset is verified; the flags of tools/verify_dataset.py.

    Attributes:
        fast: leave out what needs every byte: checksums, ids, document ends, mask codes.
        needs_manifest: a dataset without manifest is damaged; Megatron-LM writes none.
        tokenizer: the tokenizer to compare with; nothing given, nothing compared.
    """

    fast: bool = False
    needs_manifest: bool = True
    tokenizer: TokenizerFlags = field(default_factory=TokenizerFlags)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: what was found, or why not."""

    check: str
    detail: str = ""
    error: MegatronExtError | None = None

    @property
    def ok(self) -> bool:
        """Whether the check holds."""
        return self.error is None


def bytes_to_read(prefix: str) -> int:
    """How many bytes the verification of a dataset will pass by, for a progress bar."""
    paths = (bin_path(prefix), idx_path(prefix), loss_mask_path(prefix))
    return sum(path.stat().st_size for path in paths if path.is_file())


def verify_dataset(prefix: str, options: VerifyOptions, advance: Callable[[int], object]) -> Iterator[Finding]:
    """The findings about one dataset, in a fixed order, each as soon as it is known; memory is constant.

    Args:
        prefix: path without the suffixes.
        options: what to check.
        advance: told how many bytes were read, again and again.
    """
    manifest: DatasetManifest | None = None
    dataset: IndexedDataset | None = None
    try:
        manifest = _read(prefix, options.needs_manifest)
        yield Finding("manifest", "is what its own checksum says" if manifest else "there is none")
    except DataError as error:
        yield Finding("manifest", error=error)
    if manifest is not None:
        yield _finding("file sizes", lambda: _sizes(prefix, manifest))
        yield _finding("record counts", lambda: _counts(prefix, manifest))
    try:
        opened = IndexedDataset(prefix)
        opened.check_structure()
        dataset = opened
        yield Finding("structure", f"{dataset.num_documents} documents, {dataset.num_tokens} {dataset.dtype} tokens")
    except DataError as error:
        yield Finding("structure", error=error)
    if options.tokenizer.given:
        yield _finding("tokenizer", lambda: _tokenizer(manifest, options.tokenizer))
    if not options.fast:
        yield from _contents(prefix, manifest, dataset, advance)


def _finding(check: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(check, find())
    except MegatronExtError as error:
        return Finding(check, error=error)


def _read(prefix: str, needs_manifest: bool) -> DatasetManifest | None:
    manifest = read_manifest(prefix)
    if manifest is None and needs_manifest:
        raise DataError(
            f"{manifest_path(prefix)} does not exist",
            "Without it nothing says what the bytes of the dataset should be",
            "Copy it too; for a dataset that Megatron-LM made give --no-manifest",
        )
    return manifest


def _sizes(prefix: str, manifest: DatasetManifest) -> str:
    for suffix, facts in manifest.files.items():
        path = Path(f"{prefix}{suffix}")
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})", fix=_AGAIN) from None
        if found != facts.size_bytes:
            raise DataError(f"{path} has {found} bytes", f"The manifest says {facts.size_bytes}", _AGAIN)
    return ", ".join(f"{suffix} {facts.size_bytes}" for suffix, facts in manifest.files.items())


def _counts(prefix: str, manifest: DatasetManifest) -> str:
    counts, path = manifest.records, manifest_path(prefix)
    said = f"{counts.read} read = {counts.written} written + {counts.quarantined} quarantined + {counts.empty} empty"
    if not counts.add_up:
        raise DataError(f"the records in {path} do not add up: {said}", "No record may disappear", _AGAIN)
    sums = (
        ("quarantined records by reason", sum(manifest.quarantined_by_reason.values()), counts.quarantined),
        ("records of the inputs", sum(entry.records for entry in manifest.inputs), counts.read),
    )
    for name, parts, whole in sums:
        if parts != whole:
            raise DataError(f"the {name} in {path} add up to {parts}", f"It says {whole} in all", _AGAIN)
    return said


def _tokenizer(manifest: DatasetManifest | None, flags: TokenizerFlags) -> str:
    if manifest is None:
        raise DataError("no manifest says which tokenizer made the data", fix="Leave the tokenizer's flags out")
    return f"fingerprint {open_tokenizer(manifest, flags).fingerprint}"


def _contents(
    prefix: str, manifest: DatasetManifest | None, dataset: IndexedDataset | None, advance: Callable[[int], object]
) -> Iterator[Finding]:
    """The checks that need every byte; each file is read once for all of its checks."""
    for path, checks in _content_checks(prefix, manifest, dataset).items():
        try:
            scan_file(path, checks, advance)
        except DataError as error:
            yield Finding(f"bytes of {path.suffix}", error=error)
        else:
            yield from (_finding(check.name, check.verdict) for check in checks)


def _content_checks(
    prefix: str, manifest: DatasetManifest | None, dataset: IndexedDataset | None
) -> dict[Path, list[ContentCheck]]:
    checks: dict[Path, list[ContentCheck]] = {}
    for suffix, facts in manifest.files.items() if manifest else ():
        path = Path(f"{prefix}{suffix}")
        checks[path] = [Checksum(path, facts)]
    if dataset is not None:  # only an index that holds says what the tokens are
        of_tokens = checks.setdefault(bin_path(prefix), [])
        of_tokens.append(TokenRange(dataset))
        if manifest is not None and manifest.append_eod and not _has_own_end(manifest):
            of_tokens.append(DocumentEnds(dataset, manifest.tokenizer.eod_id))
        if dataset.loss_mask is not None:
            checks.setdefault(loss_mask_path(prefix), []).append(MaskCodes(prefix))
    return checks


def _has_own_end(manifest: DatasetManifest) -> bool:
    """Whether documents end with a token that --special-token named, which need not be the tokenizer's own."""
    return any(name == EOS for name, _ in manifest.rows.get("special_tokens", ()))
