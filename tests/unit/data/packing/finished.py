"""Finished datasets with manifests, as tools/preprocess_data.py leaves them, from documents written out in a test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackedPart
from megatron_ext.data.packing.settings import PackSettings
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import IndexedWriter
from megatron_ext.data.store.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    InputFacts,
    TokenizerFacts,
    manifest_path,
)

BOS = 1
PAD = 3


def finished(
    prefix: Path, documents: Iterable[Sequence[int]], masks: Iterable[Sequence[int]] | None = None, **facts: Any
) -> str:
    """Write a dataset and its manifest; `facts` replace fields of the manifest, `fingerprint` the tokenizer's."""
    documents = [list(document) for document in documents]
    fingerprint = facts.pop("fingerprint", "one tokenizer")
    writer = IndexedWriter(prefix, np.uint16, with_loss_mask=masks is not None)
    for document, mask in zip(documents, masks or [None] * len(documents), strict=True):
        writer.append_document(np.array(document, np.int64), None if mask is None else bytes(mask))
    writer.finish()
    writer.publish()
    writer.discard()
    fields = {
        "tool_version": "0",
        "key": "text",
        "dtype": "uint16",
        "append_eod": False,
        "documents": writer.num_documents,
        "tokens": writer.num_tokens,
        "largest_id": max((token for document in documents for token in document), default=-1),
        "tokenizer": TokenizerFacts("NullTokenizer", None, fingerprint, 60000, 2),
        "records": Counts(len(documents), len(documents), 0, 0),
        "quarantined_by_reason": {},
        "inputs": [InputFacts("rows.jsonl", 1, len(documents))],
        "bin_file": FileFacts(writer.bin_file.size_bytes, writer.bin_file.sha256),
        "idx_file": FileFacts(writer.idx_file.size_bytes, writer.idx_file.sha256),
    }
    if writer.mask_file is not None:
        fields["loss_mask_file"] = FileFacts(writer.mask_file.size_bytes, writer.mask_file.sha256)
    manifest_path(prefix).write_text(DatasetManifest(**{**fields, **facts}).to_json(), encoding="utf-8")
    return str(prefix)


def settings_for(method: str, joined: JoinedDatasets | Sequence[str], **values: Any) -> PackSettings:
    """Settings of one method; the output prefix is not used by planners."""
    inputs = [store.prefix for store in joined.stores] if isinstance(joined, JoinedDatasets) else joined
    return PackSettings(method, tuple(inputs), **{"output_prefix": "out", **values})


def blocks_of(part: PackedPart) -> list[list[tuple[int, int]]]:
    """The spans of each block."""
    return [
        [(int(part.starts[span]), int(part.ends[span])) for span in range(part.bounds[block], part.bounds[block + 1])]
        for block in range(part.num_blocks)
    ]


def contents(prefix: str | Path) -> tuple[list[list[int]], list[list[int]] | None]:
    """The documents of a dataset, and their masks."""
    store = IndexedDataset(prefix)
    rows = [row.tolist() for row in store]
    if store.loss_mask is None:
        return rows, None
    ends = np.cumsum([len(row) for row in rows])[:-1]
    return rows, [piece.tolist() for piece in np.split(store.loss_mask, ends)]
