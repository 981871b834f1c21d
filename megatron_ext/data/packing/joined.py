"""Several finished datasets as one: their documents laid end to end, each token known by one number."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.loss_mask import LEARNED
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import DataError
from megatron_ext.native_numpy import Int64Array

_CHECK_BLOCK = 1 << 20


class JoinedDatasets:
    """The documents of some datasets in their order, numbered from 0 on, and so their tokens.

    Tokens stay on disk; only the places of the documents are in memory, 8 bytes each.

    Attributes:
        stores: the datasets.
        manifests: theirs.
        offsets: int64 `[documents + 1]`, first token of each document; the last one is the number of tokens.
        first_documents: number of the first document of each dataset, and the number of documents at the end.
        dtype: type of the stored tokens.
        has_loss_mask: some dataset has a loss mask; the others are learned whole.

    Raises:
        DataError: a dataset is damaged or has no manifest, they were not made with one tokenizer, one is given twice
            or is packed already, or they have no token.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        _refuse_repeated(prefixes)
        self.stores = [IndexedDataset(prefix) for prefix in prefixes]
        self.manifests = [_manifest_of(store) for store in self.stores]
        self._refuse_unlike()
        self.dtype = self.stores[0].dtype
        self.has_loss_mask = any(store.loss_mask is not None for store in self.stores)
        self._first_tokens = np.cumsum([0] + [store.num_tokens for store in self.stores]).tolist()
        self.first_documents: list[int] = np.cumsum([0] + [store.num_documents for store in self.stores]).tolist()
        self.offsets = np.empty(self.first_documents[-1] + 1, np.int64)
        for place, store in enumerate(self.stores):
            store.check_structure()
            begin, end = self.first_documents[place], self.first_documents[place + 1]
            self.offsets[begin : end + 1] = store.document_offsets(0, store.num_documents) + self._first_tokens[place]
        if self.num_tokens == 0:
            raise DataError(f"{', '.join(prefixes)} has no token to pack")

    @property
    def num_tokens(self) -> int:
        """Tokens of all datasets."""
        return self._first_tokens[-1]

    @property
    def num_documents(self) -> int:
        """Documents of all datasets, those without a token included."""
        return self.first_documents[-1]

    def documents(self) -> Int64Array:
        """The numbers of the documents that have tokens, int64 `[n]`, rising."""
        return np.flatnonzero(self.offsets[1:] > self.offsets[:-1])

    def place_of(self, document: int) -> tuple[int, int]:
        """The dataset of a document, and its number in it."""
        place = bisect.bisect_right(self.first_documents, document) - 1
        return place, document - self.first_documents[place]

    def tokens(self, start: int, end: int) -> NDArray:
        """The tokens `start : end`, `[end - start]` of `dtype`."""
        out = np.empty(end - start, self.dtype)
        self.copy(start, end, out, None)
        return out

    def copy(self, start: int, end: int, tokens: NDArray, mask: NDArray[np.uint8] | None) -> None:
        """Write the tokens `start : end` into `tokens` and their loss-mask codes into `mask`, both `[end - start]`."""
        place, done = bisect.bisect_right(self._first_tokens, start) - 1, 0
        while start < end:
            first, last = self._first_tokens[place], min(end, self._first_tokens[place + 1])
            store, after = self.stores[place], done + last - start
            tokens[done:after] = store.tokens[start - first : last - first]
            if mask is not None:
                mask[done:after] = LEARNED if store.loss_mask is None else store.loss_mask[start - first : last - first]
            start, done, place = last, after, place + 1

    def num_beginning_otherwise(self, token: int) -> int:
        """How many documents with tokens do not begin with `token`."""
        found = 0
        for place, store in enumerate(self.stores):
            begin, end = self.first_documents[place], self.first_documents[place + 1]
            for first in range(begin, end, _CHECK_BLOCK):
                offsets = self.offsets[first : min(first + _CHECK_BLOCK, end) + 1] - self._first_tokens[place]
                starts = offsets[:-1][offsets[1:] > offsets[:-1]]
                found += int(np.count_nonzero(store.tokens[starts] != token))
        return found

    def require_id(self, flag: str, token: int) -> None:
        """Raise DataError when an id given on the command line is none of the tokenizer's."""
        size = self.manifests[0].tokenizer.vocab_size
        if token >= size:
            raise DataError(f"{flag} {token} is not an id", f"The tokenizer of the data has ids 0 to {size - 1}")

    def _refuse_unlike(self) -> None:
        first = self.manifests[0]
        for store, manifest in zip(self.stores, self.manifests, strict=True):
            for what, ours, theirs in (
                ("tokenizer", first.tokenizer.fingerprint, manifest.tokenizer.fingerprint),
                ("stored type", first.dtype, manifest.dtype),
            ):
                if ours != theirs:
                    raise DataError(
                        f"{store.prefix} has another {what} than {self.stores[0].prefix}: {theirs}",
                        f"Its {what} is {ours}; one block holds ids of one kind",
                        "Pack datasets that were made with one tokenizer",
                    )


def _refuse_repeated(prefixes: Sequence[str]) -> None:
    seen: set[Path] = set()
    for prefix in prefixes:
        path = Path(prefix).resolve()
        if path in seen:
            raise DataError(
                f"--input names {prefix} twice", "Each dataset is read once", "To read it more often, give it a weight"
            )
        seen.add(path)


def _manifest_of(store: IndexedDataset) -> DatasetManifest:
    if store.manifest is None:
        raise DataError(
            f"{store.prefix} has no manifest, so nothing tells which tokenizer made it",
            fix="Make it with tools/preprocess_data.py",
        )
    if "packing" in store.manifest.rows:
        raise DataError(
            f"{store.prefix} is packed already (--method {store.manifest.rows['packing']})",
            "Its documents are blocks, in which documents are cut or padded",
            "Give the dataset that it was made of",
        )
    return store.manifest
