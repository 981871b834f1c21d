"""The files of one packing run: a dataset per part, the list of dropped documents, manifests; published together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import megatron_ext
from megatron_ext.data.packing.block_writer import BlockWriter
from megatron_ext.data.packing.joined import JoinedDatasets
from megatron_ext.data.packing.plan import PackedPart, PackPlan
from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.store.indexed import bin_path, idx_path
from megatron_ext.data.store.loss_mask import loss_mask_path
from megatron_ext.data.store.manifest import Counts, DatasetManifest, FileFacts, InputFacts, manifest_path
from megatron_ext.errors import DataError


def dropped_path(output_prefix: str) -> Path:
    """The list of documents that a packing run dropped, one JSON object a line."""
    return Path(f"{output_prefix}.dropped.jsonl")


def refuse_existing(output_prefix: str, suffixes: Sequence[str], overwrite: bool) -> None:
    """Raise DataError when an output exists and is not to be replaced."""
    paths = [path for suffix in suffixes for path in _dataset_paths(output_prefix + suffix)]
    existing = [path for path in (*paths, dropped_path(output_prefix)) if path.exists()]
    if existing and not overwrite:
        raise DataError(
            f"the output {existing[0]} exists already",
            fix="Give --overwrite to replace it, or choose another --output-prefix",
        )


def refuse_input_as_output(output_prefix: str, suffixes: Sequence[str], inputs: Sequence[str]) -> None:
    """Raise DataError when an output would take the place of an input."""
    for suffix in suffixes:
        for name in inputs:
            if bin_path(output_prefix + suffix).resolve() == bin_path(name).resolve():
                raise DataError(
                    f"--output-prefix {output_prefix} would replace the input {name}", fix="Choose another prefix"
                )


class PackedOutputs:
    """All outputs of one run; a reader sees none of them before `publish`, and the manifests come last (law L7).

    Args:
        output_prefix: as in --output-prefix.
        joined: the inputs.
        plan: what to write.

    Attributes:
        written: (prefix, part, its writer) of each part that has blocks.

    Raises:
        DataError: an output cannot be written.
    """

    def __init__(self, output_prefix: str, joined: JoinedDatasets, plan: PackPlan) -> None:
        self.written: list[tuple[str, PackedPart, BlockWriter]] = []
        self._output_prefix, self._joined, self._plan = output_prefix, joined, plan
        self._dropped: PendingFile | None = None
        self._manifests: list[PendingFile] = []
        with contextlib.ExitStack() as opened:
            opened.callback(self.discard)
            for part in plan.parts:
                if part.num_blocks:
                    prefix = output_prefix + part.suffix
                    self.written.append((prefix, part, BlockWriter(prefix, joined, plan)))
            opened.pop_all()

    def write(self) -> None:
        """Write all blocks, and the list of dropped documents.

        Raises:
            DataError: the disk is full or fails.
        """
        for _, part, writer in self.written:
            writer.write(part)
        if len(self._plan.listed):
            self._dropped = PendingFile(dropped_path(self._output_prefix))
            for document in self._plan.listed.tolist():
                self._dropped.write(self._dropped_line(document))
            self._dropped.finish()

    def publish(self) -> dict[str, DatasetManifest]:
        """Give every output its final name; the manifest of each dataset by its prefix."""
        for _, _, writer in self.written:
            writer.writer.finish()
        manifests = {prefix: self._manifest(part, writer) for prefix, part, writer in self.written}
        for prefix, manifest in manifests.items():
            file = PendingFile(manifest_path(prefix))
            self._manifests.append(file)
            file.write(manifest.to_json().encode("utf-8"))
            file.finish()
        self._remove_old()
        for _, _, writer in self.written:
            writer.writer.publish()
        if self._dropped is not None:
            self._dropped.publish()
        for file in self._manifests:
            file.publish()
        return manifests

    def discard(self) -> None:
        """Remove everything that was not published."""
        for _, _, writer in self.written:
            writer.writer.discard()
        for file in (self._dropped, *self._manifests):
            if file is not None:
                file.discard()

    def _remove_old(self) -> None:
        """Remove what would contradict the new files: manifests, parts that have no block any more, the list."""
        prefixes = {prefix for prefix, _, _ in self.written}
        for part in self._plan.parts:
            prefix = self._output_prefix + part.suffix
            for path in (manifest_path(prefix),) if prefix in prefixes else _dataset_paths(prefix):
                path.unlink(missing_ok=True)
        dropped_path(self._output_prefix).unlink(missing_ok=True)

    def _dropped_line(self, document: int) -> bytes:
        place, number = self._joined.place_of(document)
        line = {
            "input": self._joined.stores[place].prefix,
            "document": number,
            "tokens": int(self._joined.offsets[document + 1] - self._joined.offsets[document]),
            "reason": self._plan.listed_reason,
        }
        return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8")

    def _manifest(self, part: PackedPart, writer: BlockWriter) -> DatasetManifest:
        joined, plan, output = self._joined, self._plan, writer.writer
        first = joined.manifests[0]
        return DatasetManifest(
            tool_version=megatron_ext.__version__,
            key="+".join(dict.fromkeys(manifest.key for manifest in joined.manifests)),
            dtype=first.dtype,
            append_eod=plan.whole_documents and all(manifest.append_eod for manifest in joined.manifests),
            documents=output.num_documents,
            tokens=output.num_tokens,
            largest_id=writer.largest_id,
            tokenizer=first.tokenizer,
            records=_document_counts(joined, part),
            quarantined_by_reason={entry.reason: entry.documents for entry in part.dropped if entry.documents},
            inputs=[
                InputFacts(store.prefix, manifest.bin_file.size_bytes, manifest.documents)
                for store, manifest in zip(joined.stores, joined.manifests, strict=True)
            ],
            bin_file=_facts(output.bin_file),
            idx_file=_facts(output.idx_file),
            rows={
                **plan.settings,
                **part.facts,
                "seq_length": part.seq_length,
                "input_identities": [manifest.identity for manifest in joined.manifests],
                "tokens": _token_counts(joined, part, writer),
                "blocks_without_labels": writer.blocks_without_labels,
            },
            loss_mask_file=_facts(output.mask_file) if output.mask_file else None,
        )


def _document_counts(joined: JoinedDatasets, part: PackedPart) -> Counts:
    """A record is an input document: written when a token of it stands in a block, else set aside for a reason."""
    with_tokens, dropped = len(joined.documents()), sum(entry.documents for entry in part.dropped)
    return Counts(joined.num_documents, with_tokens - dropped, dropped, joined.num_documents - with_tokens)


def _token_counts(joined: JoinedDatasets, part: PackedPart, writer: BlockWriter) -> dict[str, object]:
    """Conservation of tokens (law L5): read + repeated + padding - dropped = written."""
    padding, dropped = int(part.padding.sum()), {entry.reason: entry.tokens for entry in part.dropped if entry.tokens}
    written = writer.writer.num_tokens
    if joined.num_tokens + part.repeated_tokens + padding - sum(dropped.values()) != written:
        raise AssertionError(
            f"tokens do not add up: {joined.num_tokens} read + {part.repeated_tokens} repeated + {padding} padding "
            f"- {dropped} dropped is not {written} written"
        )
    return {
        "read": joined.num_tokens,
        "repeated": part.repeated_tokens,
        "padding": padding,
        "dropped": dropped,
        "written": written,
        "learned": writer.learned,
    }


def _dataset_paths(prefix: str) -> tuple[Path, ...]:
    return manifest_path(prefix), idx_path(prefix), bin_path(prefix), loss_mask_path(prefix)


def _facts(file: PendingFile) -> FileFacts:
    return FileFacts(file.size_bytes, file.sha256)
