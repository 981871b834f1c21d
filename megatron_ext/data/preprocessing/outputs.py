"""The files one preprocessing run makes: a dataset per key, the quarantine, the manifests; published together."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import megatron_ext
from megatron_ext.data.preprocessing.pending import PendingFile, partial_path
from megatron_ext.data.rows.encoder import EncodedBlock
from megatron_ext.data.store.indexed import bin_path, idx_path
from megatron_ext.data.store.indexed_writer import IndexedWriter, WriterState
from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.data.store.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    InputFacts,
    TokenizerFacts,
    manifest_path,
)
from megatron_ext.errors import DataError


@dataclass(frozen=True)
class OutputLayout:
    """What is written where.

    Attributes:
        output_prefix: as in --output-prefix, for a shard with its number.
        keys: one dataset each, `PREFIX_KEY_document`.
        dtype: numpy name of the stored token type.
        with_loss_mask: the datasets have loss masks.
        append_eod: each document ends with the end-of-document id.
        rows: what the manifest says of how records became documents.
        shard: (I, N) for part I of N, which may be empty; None for a whole dataset.
    """

    output_prefix: str
    keys: tuple[str, ...]
    dtype: str
    with_loss_mask: bool = False
    append_eod: bool = False
    rows: dict[str, Any] = field(default_factory=dict)
    shard: tuple[int, int] | None = None

    @property
    def prefixes(self) -> list[str]:
        """The prefix of each dataset."""
        return [f"{self.output_prefix}_{key}_document" for key in self.keys]

    @property
    def quarantine_path(self) -> Path:
        """Where bad records are set aside."""
        return Path(f"{self.output_prefix}.quarantine.jsonl")

    @property
    def journal_path(self) -> Path:
        """The journal of a run that is not finished."""
        return Path(f"{self.output_prefix}.journal")

    @property
    def result_paths(self) -> list[Path]:
        """Every file that the run may publish."""
        names = (bin_path, loss_mask_path, idx_path, manifest_path)
        return [*(name(prefix) for prefix in self.prefixes for name in names), self.quarantine_path]


@dataclass
class KeyTotals:
    """Running totals of one key."""

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    largest_id: int = -1


@dataclass
class OutputTotals:
    """Running totals of a run; what a later run needs to go on from here."""

    num_read: int = 0
    keys: list[KeyTotals] = field(default_factory=list)
    quarantined: Counter[str] = field(default_factory=Counter)
    quarantine_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        return {
            "num_read": self.num_read,
            "keys": [asdict(key) for key in self.keys],
            "quarantined": dict(self.quarantined),
            "quarantine_bytes": self.quarantine_bytes,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> OutputTotals:
        """The totals that `to_json` gave."""
        keys = [KeyTotals(**entry) for entry in content["keys"]]
        return cls(content["num_read"], keys, Counter(content["quarantined"]), content["quarantine_bytes"])


class DatasetOutputs:
    """All outputs of one run; a reader sees none of them before `publish`, and the manifests come last (law L7).

    Args:
        layout: what is written where.
        resume: totals of the killed run whose unpublished files are to be completed; None begins anew.

    Raises:
        DataError: an output cannot be written, or the files of the killed run are not what its journal says.
    """

    def __init__(self, layout: OutputLayout, resume: OutputTotals | None = None) -> None:
        self.layout = layout
        self.totals = resume or OutputTotals(keys=[KeyTotals() for _ in layout.keys])
        self._writers: list[IndexedWriter] = []
        self._manifests: list[PendingFile] = []
        if resume is not None:
            _take_back(layout)
        with contextlib.ExitStack() as opened:
            for prefix, key in zip(layout.prefixes, self.totals.keys, strict=True):
                state = WriterState(key.documents, key.tokens) if resume else None
                writer = IndexedWriter(prefix, np.dtype(layout.dtype), layout.with_loss_mask, state)
                opened.callback(writer.keep if resume else writer.discard)
                self._writers.append(writer)
            path = layout.quarantine_path
            self._quarantine = PendingFile.resume(path, resume.quarantine_bytes) if resume else PendingFile(path)
            opened.pop_all()

    @property
    def num_tokens(self) -> int:
        """Tokens of all keys so far."""
        return sum(writer.num_tokens for writer in self._writers)

    def add(self, block: EncodedBlock, names: Sequence[str]) -> None:
        """Append the documents of one block, and its bad records to the quarantine.

        Args:
            block: what a worker made.
            names: name of each input file.
        """
        totals = self.totals
        totals.num_read += block.num_records
        for record in block.bad:
            self._quarantine.write(record.to_json(names[record.file_index]))
            totals.quarantined[record.reason] += 1
        totals.quarantine_bytes = self._quarantine.size_bytes
        for writer, key, documents in zip(self._writers, totals.keys, block.documents, strict=True):
            writer.append(documents.token_bytes, documents.lengths, documents.mask_bytes)
            key.documents, key.tokens = writer.num_documents, writer.num_tokens
            key.empty += documents.num_empty
            key.largest_id = max(key.largest_id, documents.largest_id)

    def sync(self) -> None:
        """Force everything added so far to disk, so that the journal may say it is there."""
        for writer in self._writers:
            writer.sync()
        self._quarantine.sync()

    def publish(self, inputs: list[InputFacts], tokenizer: TokenizerFacts) -> list[DatasetManifest]:
        """Give every output its final name and return the manifests, one per key.

        Raises:
            DataError: no key has a single document (the quarantine is published all the same).
        """
        totals = self.totals
        if self.layout.shard is None and not any(key.documents for key in totals.keys):
            self._publish_quarantine()
            raise DataError(
                f"no document was found in {totals.num_read} records",
                f"{totals.quarantined.total()} were quarantined, the others have no text",
                f"See {self.layout.quarantine_path}" if totals.quarantined else "Check --input and --json-keys",
            )
        for writer in self._writers:
            writer.finish()
        manifests = [self._manifest(index, inputs, tokenizer) for index in range(len(self._writers))]
        for prefix, manifest in zip(self.layout.prefixes, manifests, strict=True):
            file = PendingFile(manifest_path(prefix))
            self._manifests.append(file)
            file.write(manifest.to_json().encode("utf-8"))
            file.finish()
            file.path.unlink(missing_ok=True)
        self._publish_quarantine()
        outputs: list[IndexedWriter | PendingFile] = [*self._writers, *self._manifests]
        for output in outputs:
            output.publish()
        return manifests

    def discard(self) -> None:
        """Remove everything that was not published."""
        outputs: list[IndexedWriter | PendingFile] = [*self._writers, *self._manifests, self._quarantine]
        for output in outputs:
            output.discard()

    def keep(self) -> None:
        """Leave everything that was not published on disk, for a run that resumes."""
        for manifest in self._manifests:
            manifest.discard()
        outputs: list[IndexedWriter | PendingFile] = [*self._writers, self._quarantine]
        for output in outputs:
            output.keep()

    def _publish_quarantine(self) -> None:
        if self.totals.quarantined:
            self._quarantine.finish()
            self._quarantine.publish()
        else:
            self._quarantine.discard()
            self.layout.quarantine_path.unlink(missing_ok=True)

    def _manifest(self, index: int, inputs: list[InputFacts], tokenizer: TokenizerFacts) -> DatasetManifest:
        writer, key, layout = self._writers[index], self.totals.keys[index], self.layout
        counts = Counts(self.totals.num_read, key.documents, self.totals.quarantined.total(), key.empty)
        if not counts.add_up:
            raise AssertionError(f"records do not add up: {counts}")
        return DatasetManifest(
            tool_version=megatron_ext.__version__,
            key=layout.keys[index],
            dtype=layout.dtype,
            append_eod=layout.append_eod,
            documents=key.documents,
            tokens=key.tokens,
            largest_id=key.largest_id,
            tokenizer=tokenizer,
            records=counts,
            quarantined_by_reason=dict(sorted(self.totals.quarantined.items())),
            inputs=inputs,
            bin_file=_facts(writer.bin_file),
            idx_file=_facts(writer.idx_file),
            rows=layout.rows,
            shard=list(layout.shard) if layout.shard else None,
            loss_mask_file=_facts(writer.mask_file) if writer.mask_file else None,
        )


def _facts(file: PendingFile) -> FileFacts:
    return FileFacts(file.size_bytes, file.sha256)


def _take_back(layout: OutputLayout) -> None:
    """Undo a publication that was killed in the middle: what has its final name already becomes unpublished again.

    As long as there is a journal the run is not finished, and a file without its partial name is one it had renamed.
    """
    paths = [layout.quarantine_path]
    for prefix in layout.prefixes:
        idx_path(prefix).unlink(missing_ok=True)  # first, so that nobody opens the rest meanwhile
        paths += [bin_path(prefix), *([loss_mask_path(prefix)] if layout.with_loss_mask else [])]
    for path in paths:
        if path.exists() and not partial_path(path).exists():
            path.replace(partial_path(path))
