"""What one preprocessing run made of its inputs, looked at from outside and held to the law of counts (L5)."""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.store.manifest import DatasetManifest, verify_checksums
from tests.unit.data.byte_tokenizer import documents_of


@dataclass(frozen=True)
class Bad:
    """One line of a quarantine."""

    file: str
    line: int
    reason: str
    raw: bytes


@dataclass(frozen=True)
class Outcome:
    """The only dataset of a run with the ByteTokenizer, and its quarantine."""

    manifest: DatasetManifest
    documents: list[str]
    bad: list[Bad]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(bad.line, bad.reason) for bad in self.bad]


def bytes_request(inputs: tuple[str | Path, ...], prefix: Path, **values: object) -> PreprocessRequest:
    """A request for `use_tokenizer`, which does not look at the type."""
    return PreprocessRequest(tuple(map(str, inputs)), str(prefix), "ByteTokenizer", **values)


def outcome(inputs: tuple[str | Path, ...], prefix: Path, **values: object) -> Outcome:
    """Run; every record must be told of exactly once, and nothing else may be left."""
    (manifest,) = preprocess(bytes_request(inputs, prefix, **values))
    dataset = f"{prefix}_text_document"
    documents, bad = documents_of(dataset), quarantined(prefix)
    verify_checksums(dataset)
    counts = manifest.records
    assert counts.read == counts.written + counts.quarantined + counts.empty
    assert (counts.written, counts.quarantined) == (len(documents), len(bad))
    assert counts.read == sum(entry.records for entry in manifest.inputs)
    assert manifest.quarantined_by_reason == Counter(one.reason for one in bad)
    assert left_at(prefix) == {".bin", ".idx", ".manifest.json", *([".quarantine.jsonl"] if bad else [])}
    return Outcome(manifest, documents, bad)


def quarantined(prefix: Path) -> list[Bad]:
    path = Path(f"{prefix}.quarantine.jsonl")
    entries = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    assert all(entry["detail"] for entry in entries)
    return [
        Bad(entry["file"], entry["line"], entry["reason"], base64.b64decode(entry["bytes_base64"])) for entry in entries
    ]


def left_at(prefix: Path) -> set[str]:
    """Ends of the names of all files that a run left, `_text_document` taken off."""
    names = (path.name.removeprefix(prefix.name) for path in prefix.parent.glob(f"{prefix.name}[._]*"))
    return {name.removeprefix("_text_document") for name in names}
