"""Which documents, and which input files, tokens of a dataset come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import DatasetManifest


@dataclass(frozen=True)
class DocumentPart:
    """Tokens first .. last-1 of a document, which has `length`."""

    document: int
    first: int
    last: int
    length: int


def document_parts(store: IndexedDataset, begin: int, end: int) -> Iterator[DocumentPart]:
    """The documents that tokens begin .. end-1 of a dataset come from, in their order."""
    document = document_at(store, begin) if begin < end else 0
    while begin < end:
        start, stop = (int(offset) for offset in store.document_offsets(document, document + 1))
        if stop > start:
            last = min(end, stop)
            yield DocumentPart(document, begin - start, last - start, stop - start)
            begin = last
        document += 1


def document_at(store: IndexedDataset, token: int, first: int = 0) -> int:
    """The document that holds a token, found by halving: no array of the length of the dataset is made."""
    low, high = first, store.num_documents
    while high - low > 1:
        middle = (low + high) // 2
        if int(store.document_offsets(middle, middle)[0]) <= token:
            low = middle
        else:
            high = middle
    return low


def input_path(manifest: DatasetManifest | None, document: int) -> str | None:
    """The input file a document was read from; None where the manifest cannot tell.

    It tells where there was one file only, or where every record became one document.
    """
    if manifest is None or not manifest.inputs:
        return None
    if len(manifest.inputs) == 1:
        return manifest.inputs[0].path
    if not manifest.records.read == manifest.documents == sum(facts.records for facts in manifest.inputs):
        return None
    for facts in manifest.inputs:
        if document < facts.records:
            return facts.path
        document -= facts.records
    return None
