"""Scores that the input brings along: numeric fields of the rows, found again for the documents that came of them."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import megatron_ext
from megatron_ext.data.curriculum.score_run import PassResult
from megatron_ext.data.curriculum.written_records import RecordFinder, WrittenRecords
from megatron_ext.data.preprocessing.ordered_pool import ordered_map
from megatron_ext.data.records import kind_of
from megatron_ext.data.sources.blocks import Position, RecordBlock
from megatron_ext.data.sources.inputs import InputFile
from megatron_ext.data.sources.pieces import ReadProgress
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.sources.shards import Shard
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer

_OTHER_INPUT = "Give the inputs that made the dataset, in the same order (--input-rows, --input-format)"


def field_score_name(field: str) -> str:
    """The name of the scores that a field gives: `field-NAME`, dots as hyphens."""
    return "field-" + field.replace(".", "-")


def number_in(record: Any, field: str) -> float:
    """The number in a field of a row; a field that is not there by its name is a path through objects, `meta.score`.

    Raises:
        DataError: there is no such field, or no finite number in it.
    """
    value = record
    for key in [field] if isinstance(record, dict) and field in record else field.split("."):
        if not isinstance(value, dict) or key not in value:
            raise DataError(f"it has no field {field!r}")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"its field {field!r} holds {kind_of(value)} instead of a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"its field {field!r} holds {number}")
    return number


@dataclass(frozen=True)
class _BlockFields:
    """What a worker found: numbers `[fields, documents]`, and which documents they belong to."""

    numbers: NDArray[np.float64]
    written: WrittenRecords


class FieldPass:
    """Scores documents by numeric fields of the rows they were made of.

    The input is read and tokenized again, by the settings in the manifest, so each document is compared with its row:
    a field never lands on another document.

    Args:
        dataset: the opened dataset, with manifest.
        fields: names of fields, or paths through objects (`meta.score`).
        files: the inputs that made the dataset, in the same order.
        tokenizer: the tokenizer that made it.
        workers: worker processes, at least 1.

    Raises:
        DataError: the dataset was not made from rows.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        fields: Sequence[str],
        files: Sequence[InputFile],
        tokenizer: Tokenizer,
        workers: int = 1,
    ) -> None:
        if dataset.manifest is None:
            raise DataError(
                f"{dataset.prefix} has no manifest, which would say how rows became documents",
                fix="Make the dataset again with tools/preprocess_data.py",
            )
        self._dataset, self._manifest = dataset, dataset.manifest
        self._fields, self._files, self._workers = tuple(fields), list(files), workers
        self._find = RecordFinder(self._manifest, tokenizer)

    @property
    def made_by(self) -> dict[str, dict[str, Any]]:
        """Name of each score file -> how its scores are made."""
        return {
            field_score_name(field): {
                "metric": f"field:{field}",
                "says": f"field {field} of the input rows",
                "inputs": [[file.name, file.size_bytes] for file in self._files],
                "tool_version": megatron_ext.__version__,
            }
            for field in self._fields
        }

    def results(self, state: dict[str, Any] | None) -> Iterator[PassResult]:
        """The scores of all documents, or of those behind the documents that gave `state`.

        Raises:
            DataError: a row has no number in a field, or the rows are not those that made the dataset.
        """
        documents, records = (state["documents"], state["records"]) if state else (0, 0)
        shard = None if self._manifest.shard is None else Shard(*self._manifest.shard)
        start = Position(**state["position"]) if state else None
        blocks, waiting = read_blocks(self._files, ReadProgress(), start, shard), deque[RecordBlock]()

        def noted() -> Iterator[RecordBlock]:
            for block in blocks:
                waiting.append(replace(block, payload=b""))
                yield block

        with closing(ordered_map(noted(), self._read, self._workers, self._told)) as results:  # type: ignore[type-var]
            for found in results:
                block = waiting.popleft()
                self._compare(found, documents, block)
                documents, records = documents + len(found.written.places), records + block.num_records
                state = {"documents": documents, "records": records, "position": asdict(block.after)}
                yield PassResult(found.numbers, state)
        _check_counts(self._manifest, documents, records)

    def _read(self, block: RecordBlock) -> _BlockFields:
        records = block.parsed()
        written = self._find(block, records)
        numbers = np.empty((len(self._fields), len(written.places)))
        for column, place in enumerate(written.places):
            for row, field in enumerate(self._fields):
                try:
                    numbers[row, column] = number_in(records[place], field)
                except DataError as error:
                    name = self._files[block.file_index].name
                    raise DataError(
                        f"record {block.first_record + place} of {name} cannot be scored: {error.what}",
                        "Each row that became a document needs a finite number there",
                        "Mend the row, or choose another field",
                    ) from None
        return _BlockFields(numbers, written)

    def _compare(self, found: _BlockFields, first: int, block: RecordBlock) -> None:
        """Whether the documents of a block are the next ones of the dataset, token by token."""
        last = first + len(found.written.places)
        same = last <= self._dataset.num_documents
        if same:
            begin, end = (int(self._dataset.document_offsets(place, place)[0]) for place in (first, last))
            content = self._dataset.tokens[begin:end].tobytes()
            same = hashlib.sha256(content).hexdigest() == found.written.sha256
        if not same:
            raise DataError(
                f"{self._told(block)} did not make documents {first} to {last - 1} of {self._dataset.prefix}",
                f"Rows and documents are compared token by token; the dataset has {self._dataset.num_documents} "
                "documents",
                _OTHER_INPUT,
            )

    def _told(self, block: RecordBlock) -> str:
        last = block.first_record + block.num_records - 1
        return f"records {block.first_record} to {last} of {self._files[block.file_index].name}"


def _check_counts(manifest: DatasetManifest, documents: int, records: int) -> None:
    for what, found, said in (
        ("documents", documents, manifest.documents),
        ("records", records, manifest.records.read),
    ):
        if found != said:
            raise DataError(f"the input gives {found} {what}", f"The dataset was made of {said} {what}", _OTHER_INPUT)
