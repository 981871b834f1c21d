"""The files one preprocessing run makes: a dataset per key, the quarantine, the manifests; published together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

import megatron_ext
from megatron_ext.data.encode import EncodedBlock, EncodeSettings
from megatron_ext.data.indexed import bin_path, idx_path
from megatron_ext.data.indexed_writer import IndexedWriter
from megatron_ext.data.manifest import (
    Counts,
    DatasetManifest,
    FileFacts,
    InputFacts,
    TokenizerFacts,
    manifest_path,
)
from megatron_ext.data.pending import PendingFile
from megatron_ext.errors import DataError

_Output = TypeVar("_Output", IndexedWriter, PendingFile)


@dataclass
class KeyTotals:
    """Running totals of one key."""

    written: int = 0
    empty: int = 0
    largest_id: int = -1


class DatasetOutputs:
    """All outputs of one run; a reader sees none of them before `publish`, and the manifests come last (law L7).

    Args:
        output_prefix: as in --output-prefix.
        settings: keys, stored type, tokenizer.
        overwrite: replace outputs that exist.

    Raises:
        DataError: an output exists and `overwrite` is off, or cannot be written.
    """

    def __init__(self, output_prefix: str, settings: EncodeSettings, overwrite: bool) -> None:
        self.prefixes = [f"{output_prefix}_{key}_document" for key in settings.keys]
        self.quarantine_path = Path(f"{output_prefix}.quarantine.jsonl")
        self.num_read = 0
        self.totals = [KeyTotals() for _ in settings.keys]
        self.quarantined: Counter[str] = Counter()
        self._settings = settings
        self._refuse_existing(overwrite)
        self._open_files: list[IndexedWriter | PendingFile] = []
        self._writers: list[IndexedWriter] = []
        try:
            for prefix in self.prefixes:
                self._writers.append(self._keep(IndexedWriter(prefix, np.dtype(settings.dtype))))
            self._quarantine = self._keep(PendingFile(self.quarantine_path))
        except DataError:
            self.discard()
            raise

    @property
    def num_tokens(self) -> int:
        """Tokens of all keys so far."""
        return sum(writer.num_tokens for writer in self._writers)

    def add(self, block: EncodedBlock, paths: Sequence[Path]) -> None:
        """Append the documents of one block, and its bad records to the quarantine."""
        self.num_read += block.num_records
        for record in block.bad:
            self._quarantine.write(record.to_json(str(paths[record.file_index])))
            self.quarantined[record.reason] += 1
        for writer, totals, documents in zip(self._writers, self.totals, block.documents, strict=True):
            writer.append(documents.token_bytes, documents.lengths)
            totals.written += len(documents.lengths)
            totals.empty += documents.num_empty
            totals.largest_id = max(totals.largest_id, documents.largest_id)

    def publish(self, inputs: list[InputFacts], tokenizer: TokenizerFacts) -> list[DatasetManifest]:
        """Give every output its final name and return the manifests, one per key.

        Raises:
            DataError: no key has a single document (the quarantine is published all the same).
        """
        self._publish_quarantine()
        if not any(totals.written for totals in self.totals):
            raise DataError(
                f"no document was found in {self.num_read} records",
                f"{self.quarantined.total()} were quarantined, the others have no text",
                f"See {self.quarantine_path}" if self.quarantined else "Check --input and --json-keys",
            )
        for writer in self._writers:
            writer.finish()
        manifests = [self._manifest(index, inputs, tokenizer) for index in range(len(self._writers))]
        pending = [self._keep(PendingFile(manifest_path(prefix))) for prefix in self.prefixes]
        for file, manifest in zip(pending, manifests, strict=True):
            file.write(manifest.to_json().encode("utf-8"))
            file.finish()
            file.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.publish()
        for file in pending:
            file.publish()
        return manifests

    def discard(self) -> None:
        """Remove everything that was not published."""
        for file in self._open_files:
            file.discard()

    def _publish_quarantine(self) -> None:
        if self.quarantined:
            self._quarantine.finish()
            self._quarantine.publish()
        else:
            self._quarantine.discard()
            self.quarantine_path.unlink(missing_ok=True)

    def _manifest(self, index: int, inputs: list[InputFacts], tokenizer: TokenizerFacts) -> DatasetManifest:
        writer, totals = self._writers[index], self.totals[index]
        counts = Counts(self.num_read, totals.written, self.quarantined.total(), totals.empty)
        if not counts.add_up:
            raise AssertionError(f"records do not add up: {counts}")
        return DatasetManifest(
            tool_version=megatron_ext.__version__,
            key=self._settings.keys[index],
            dtype=self._settings.dtype,
            append_eod=self._settings.append_eod,
            documents=writer.num_documents,
            tokens=writer.num_tokens,
            largest_id=totals.largest_id,
            tokenizer=tokenizer,
            records=counts,
            quarantined_by_reason=dict(sorted(self.quarantined.items())),
            inputs=inputs,
            bin_file=FileFacts(writer.bin_file.size_bytes, writer.bin_file.sha256),
            idx_file=FileFacts(writer.idx_file.size_bytes, writer.idx_file.sha256),
        )

    def _refuse_existing(self, overwrite: bool) -> None:
        names = [name(prefix) for prefix in self.prefixes for name in (bin_path, idx_path, manifest_path)]
        existing = [str(path) for path in (*names, self.quarantine_path) if path.exists()]
        if existing and not overwrite:
            raise DataError(
                f"the output {existing[0]} exists already",
                fix="Give --overwrite to replace it, or choose another --output-prefix",
            )

    def _keep(self, file: _Output) -> _Output:
        self._open_files.append(file)
        return file
