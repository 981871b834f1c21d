"""What a dataset holds, in numbers: documents, tokens, how long, how many are learned, and what came of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.store.content_checks import MaskCodes
from megatron_ext.data.store.file_scan import scan_file
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.loss_mask import LEARNED, LEARNED_AS_EOD, loss_mask_path
from megatron_ext.data.store.manifest import DatasetManifest

_DOCUMENTS = 1 << 20  # documents looked at in one go
_SHOWN_INPUTS = 5


@dataclass(frozen=True)
class LengthTable:
    """How many documents have which length.

    It is exact and small: k different lengths need at least k (k - 1) / 2 tokens, so 10^12 tokens have less than
    1.5 million of them.

    Attributes:
        lengths: int64 `[k]`, the lengths that occur, in tokens, ascending.
        documents: int64 `[k]`, documents of each.
    """

    lengths: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def num_documents(self) -> int:
        """All documents."""
        return int(self.documents.sum())

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return int((self.lengths * self.documents).sum())

    @property
    def mean(self) -> float:
        """Tokens per document; 0 for no documents."""
        return self.num_tokens / self.num_documents if self.num_documents else 0.0

    def quantile(self, share: float) -> int:
        """The smallest length that at least this share of the documents does not exceed; 0 for no documents."""
        if not self.num_documents:
            return 0
        rank = max(1, int(np.ceil(share * self.num_documents)))
        return int(self.lengths[np.searchsorted(np.cumsum(self.documents), rank)])


def document_lengths(dataset: IndexedDataset) -> LengthTable:
    """The lengths of all documents of a dataset.

    Raises:
        DataError: the index is damaged.
    """
    dataset.check_structure()
    table = LengthTable(np.empty(0, np.int64), np.empty(0, np.int64))
    for first in range(0, dataset.num_documents, _DOCUMENTS):
        offsets = dataset.document_offsets(first, min(first + _DOCUMENTS, dataset.num_documents))
        lengths, documents = np.unique(np.diff(offsets), return_counts=True)
        merged, places = np.unique(np.concatenate([table.lengths, lengths]), return_inverse=True)
        counts = np.zeros(len(merged), np.int64)
        np.add.at(counts, places, np.concatenate([table.documents, documents]))
        table = LengthTable(merged, counts)
    return table


def summary_rows(dataset: IndexedDataset, table: LengthTable) -> list[tuple[str, str]]:
    """(name, value) of everything that is known; reads the whole loss mask, where there is one."""
    rows = [
        ("documents", f"{dataset.num_documents:,}"),
        ("tokens", f"{dataset.num_tokens:,} ({dataset.dtype}, {dataset.tokens.nbytes / 1e6:,.1f} MB)"),
        ("learned tokens", _learned(dataset)),
        ("document length", _length(table)),
    ]
    if dataset.num_sequences != dataset.num_documents:
        rows.insert(1, ("sequences", f"{dataset.num_sequences:,}"))
    return rows + (_manifest_rows(dataset.manifest) if dataset.manifest else [("manifest", "none")])


def _learned(dataset: IndexedDataset) -> str:
    if dataset.loss_mask is None:
        return "all (no loss mask)"
    codes = MaskCodes(dataset.prefix)
    scan_file(loss_mask_path(dataset.prefix), [codes], lambda _: None)
    as_eod = codes.counts[LEARNED_AS_EOD]
    learned = codes.counts[LEARNED] + as_eod
    text = f"{learned:,} ({100 * learned / max(1, dataset.num_tokens):.1f} %)"
    return f"{text}, {as_eod:,} of them as end of document" if as_eod else text


def _length(table: LengthTable) -> str:
    if not table.num_documents:
        return "-"
    names = (("min", 0.0), ("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    values = [f"{name} {table.quantile(share):,}" for name, share in names]
    return ", ".join([*values[:2], f"mean {table.mean:,.1f}", *values[2:]]) + " tokens"


def _manifest_rows(manifest: DatasetManifest) -> list[tuple[str, str]]:
    facts, counts = manifest.tokenizer, manifest.records
    rows = [
        ("tokenizer", f"{facts.type} {facts.model or ''}".strip() + f", {facts.vocab_size:,} ids, eod {facts.eod_id}"),
        ("fingerprint", facts.fingerprint),
        ("largest id", str(manifest.largest_id)),
        ("key", f"{manifest.key}, {'each document ends with eod' if manifest.append_eod else 'no eod appended'}"),
    ]
    rows += [("rows", ", ".join(f"{name} {value}" for name, value in manifest.rows.items()))] if manifest.rows else []
    rows += [("shard", "{} of {}".format(*manifest.shard))] if manifest.shard else []
    rows.append(
        ("records", f"{counts.read:,} read = {counts.written:,} written + {counts.quarantined:,} quarantined + "
         f"{counts.empty:,} empty")
    )  # fmt: skip
    rows += [("quarantined", f"{number:,} {reason}") for reason, number in manifest.quarantined_by_reason.items()]
    for entry in manifest.inputs[:_SHOWN_INPUTS]:
        size = "" if entry.size_bytes is None else f", {entry.size_bytes / 1e6:,.1f} MB"
        rows.append(("input", f"{entry.path}: {entry.records:,} records{size}"))
    if len(manifest.inputs) > _SHOWN_INPUTS:
        rows.append(("input", f"and {len(manifest.inputs) - _SHOWN_INPUTS:,} more files"))
    return rows
