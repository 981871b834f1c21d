"""`PREFIX.manifest.json`: what a dataset is, who made it from what, and the checksums of its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ext.errors import DataError

FORMAT = "megatron_ext dataset manifest"
FORMAT_VERSION = 2
_FRAME = ("format", "format_version", "checksum", "manifest_sha256")


@dataclass(frozen=True)
class FileFacts:
    """One file of the dataset: its size and the sha256 of its bytes."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerFacts:
    """The tokenizer that made the ids."""

    type: str
    model: str | None
    fingerprint: str
    vocab_size: int
    eod_id: int


@dataclass(frozen=True)
class InputFacts:
    """One input file: its path as given, its size (None for a pipe) and its records."""

    path: str
    size_bytes: int | None
    records: int


@dataclass(frozen=True)
class Counts:
    """Conservation of records (law L5): read = written + quarantined + empty."""

    read: int
    written: int
    quarantined: int
    empty: int

    @property
    def add_up(self) -> bool:
        """Whether nothing disappeared."""
        return self.read == self.written + self.quarantined + self.empty


@dataclass(frozen=True)
class DatasetManifest:
    """Everything a reader may want to know before it opens the data; no time stamps, so equal runs give equal files.

    Attributes:
        tool_version: version of this package that wrote it.
        key: JSON key of the text.
        dtype: numpy name of the stored token type.
        append_eod: whether each document ends with the tokenizer's end-of-document id.
        documents: number of documents.
        tokens: number of tokens, end-of-document ids included.
        largest_id: largest token id, -1 for no tokens.
        records: conservation counts.
        quarantined_by_reason: reason -> number of records.
        inputs: the files read, in order.
        rows: how records became documents, setting -> value, as the flags of tools/preprocess_data.py name them.
        shard: (I, N) when this is part I of N of a dataset made on several machines, else None.
        loss_mask_file: the loss mask's file, None for a dataset that is learned whole.
    """

    tool_version: str
    key: str
    dtype: str
    append_eod: bool
    documents: int
    tokens: int
    largest_id: int
    tokenizer: TokenizerFacts
    records: Counts
    quarantined_by_reason: dict[str, int]
    inputs: list[InputFacts]
    bin_file: FileFacts
    idx_file: FileFacts
    rows: dict[str, Any] = field(default_factory=dict)
    shard: list[int] | None = None
    loss_mask_file: FileFacts | None = None

    @property
    def identity(self) -> str:
        """Text that differs between datasets with different tokens, document boundaries or loss masks."""
        files = (self.bin_file, self.idx_file, self.loss_mask_file)
        return hashlib.sha256(" ".join(file.sha256 for file in files if file is not None).encode()).hexdigest()

    @property
    def files(self) -> dict[str, FileFacts]:
        """Suffix -> facts of each file of the dataset."""
        files = {".bin": self.bin_file, ".idx": self.idx_file, ".loss_mask": self.loss_mask_file}
        return {suffix: facts for suffix, facts in files.items() if facts is not None}

    def to_json(self) -> str:
        """The manifest as indented JSON text, keys in a fixed order; the last one is the checksum of the others."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "checksum": "sha256", **dataclasses.asdict(self)}
        own = hashlib.sha256(json.dumps(content, ensure_ascii=True).encode("ascii")).hexdigest()
        whole = {**content, "manifest_sha256": own}
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        # a file name need not be UTF-8; Python holds its other bytes as surrogates, which only escapes can tell
        return text if _is_unicode(text) else json.dumps(whole, indent=2, ensure_ascii=True) + "\n"


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def manifest_path(prefix: str | Path) -> Path:
    """The manifest file of a dataset."""
    return Path(f"{prefix}.manifest.json")


def read_manifest(prefix: str | Path) -> DatasetManifest | None:
    """The manifest of a dataset, or None when it has none (Megatron-LM writes none).

    Raises:
        DataError: the file is unreadable, not a manifest, or of an unknown version.
    """
    path = manifest_path(prefix)
    try:
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _damaged(path, f"its format field is not {FORMAT!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise _damaged(path, f"format version {content.get('format_version')}; this program knows {FORMAT_VERSION}")
    try:
        manifest = _from_dict({name: value for name, value in content.items() if name not in _FRAME})
    except (TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, str(error)) from None
    if manifest.to_json() != text:
        raise _damaged(path, "a byte of it was changed: it is not what its checksum says")
    return manifest


def verify_checksums(prefix: str | Path) -> None:
    """Read all files of a dataset and compare them with the manifest's checksums.

    Raises:
        DataError: there is no manifest, or a file's bytes are not the ones that were written.
    """
    manifest = read_manifest(prefix)
    if manifest is None:
        raise DataError(f"{prefix} has no manifest to verify it against")
    for suffix, facts in manifest.files.items():
        path = Path(f"{prefix}{suffix}")
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
        if found != facts.sha256:
            raise DataError(
                f"{path} is damaged: its sha256 is {found}",
                f"The manifest says {facts.sha256}",
                "Copy or make the dataset again",
            )


def _from_dict(content: dict[str, Any]) -> DatasetManifest:
    content["tokenizer"] = TokenizerFacts(**content["tokenizer"])
    content["records"] = Counts(**content["records"])
    content["inputs"] = [InputFacts(**entry) for entry in content["inputs"]]
    content["bin_file"] = FileFacts(**content["bin_file"])
    content["idx_file"] = FileFacts(**content["idx_file"])
    if content["loss_mask_file"] is not None:
        content["loss_mask_file"] = FileFacts(**content["loss_mask_file"])
    return DatasetManifest(**content)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is not a usable manifest ({why})", fix="Make the dataset again, or copy it again")
