"""Datasets with manifest, loss mask and quarantine, made directly: as one run, or as the shards of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from megatron_ext.data.records import BadRecord
from megatron_ext.data.store.indexed_writer import IndexedWriter
from megatron_ext.data.store.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    InputFacts,
    TokenizerFacts,
    manifest_path,
)
from megatron_ext.tokenizer.base import Tokenizer
from megatron_ext.tokenizer.null import NullTokenizer


@dataclass(frozen=True)
class Record:
    """One record of an input: a document, or None for one that is quarantined."""

    path: str
    tokens: list[int] | None
    reason: str = "broken JSON"


def random_records(seed: int, count: int, paths: Sequence[str] = ("a.jsonl", "b.jsonl"), bad_share: float = 0.1):
    """Records of several files, in order, some of them bad."""
    random = np.random.default_rng(seed)
    reasons = np.random.default_rng([seed, 1]).choice(["blank line", "broken JSON"], count)
    names = sorted(paths[place] for place in random.integers(0, len(paths), count))
    return [
        Record(
            name,
            None if random.random() < bad_share else random.integers(0, 1000, random.integers(0, 30)).tolist(),
            str(reason),
        )
        for name, reason in zip(names, reasons, strict=True)
    ]


def mask_of(tokens: list[int]) -> bytes:
    """A mask that depends on the tokens only."""
    return bytes(token % 3 for token in tokens)


def facts_of(tokenizer: Tokenizer) -> TokenizerFacts:
    """What a manifest says of a tokenizer without a file."""
    return TokenizerFacts(tokenizer.type_name, None, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eod_id)


@mock.patch("os.fsync", lambda _: None)  # these files need not outlive a power failure, and tests make many of them
def write_run(
    base: str | Path,
    records: Sequence[Record],
    /,
    with_mask: bool = True,
    inputs: Sequence[str] | None = None,
    made_with: Tokenizer | None = None,
    **changes: Any,
) -> str:
    """What preprocessing `records` with --append-eod leaves at `base`; the prefix of the dataset.

    `inputs` are the files that the manifest lists; None lists those that have records. `changes` are fields of the
    manifest.
    """
    tokenizer = made_with or NullTokenizer(1000)
    prefix = f"{base}_text_document"
    writer = IndexedWriter(prefix, np.uint16, with_mask)
    places, reasons = Counter[str](), Counter[str]()
    bad: list[bytes] = []
    documents = empty = 0
    largest = -1
    for record in records:
        places[record.path] += 1
        if record.tokens is None:
            reasons[record.reason] += 1
            bad.append(BadRecord(0, places[record.path], record.reason, 'a "detail"', b"{raw").to_json(record.path))
        elif not record.tokens:
            empty += 1
        else:
            tokens = [*record.tokens, tokenizer.eod_id]
            writer.append_document(tokens, mask_of(tokens) if with_mask else None)
            documents, largest = documents + 1, tokenizer.eod_id
    writer.finish()
    files = {"bin_file": writer.bin_file, "idx_file": writer.idx_file, "loss_mask_file": writer.mask_file}
    listed = dict.fromkeys(record.path for record in records) if inputs is None else inputs
    manifest = DatasetManifest(
        **{
            "tool_version": "1",
            "key": "text",
            "dtype": "uint16",
            "append_eod": True,
            "documents": documents,
            "tokens": writer.num_tokens,
            "largest_id": largest,
            "tokenizer": facts_of(tokenizer),
            "records": Counts(len(records), documents, len(bad), empty),
            "quarantined_by_reason": dict(sorted(reasons.items())),
            "inputs": [InputFacts(path, 100, places[path]) for path in listed],
            "rows": {"row_format": "text"},
            **{name: file and FileFacts(file.size_bytes, file.sha256) for name, file in files.items()},
            **changes,
        }
    )
    writer.publish()
    writer.discard()
    if bad:
        Path(f"{base}.quarantine.jsonl").write_bytes(b"".join(bad))
    manifest_path(prefix).write_text(manifest.to_json(), encoding="utf-8")
    return prefix


def write_shards(base: str | Path, records: Sequence[Record], cuts: Sequence[int], **settings: Any) -> list[str]:
    """The shards of the same run, cut before the records at `cuts`; their prefixes in order."""
    edges = [0, *cuts, len(records)]
    count = len(edges) - 1
    return [
        write_run(f"{base}.shard-{i}-of-{count}", records[edges[i] : edges[i + 1]], shard=[i, count], **settings)
        for i in range(count)
    ]


def contents(base: str | Path) -> dict[str, bytes]:
    """Name without `base` -> bytes of every file of a run."""
    base = Path(base)
    return {path.name.removeprefix(base.name): path.read_bytes() for path in base.parent.glob(f"{base.name}[._]*")}
