"""Which records of a block of input became documents: by encoding them again, by the rules that made the dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_ext.data.rows.encoder import BlockEncoder, EncodeSettings
from megatron_ext.data.rows.forms import make_row_form
from megatron_ext.data.rows.settings import FimSettings, RowSettings
from megatron_ext.data.sources.blocks import RecordBlock
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class _Part:
    """Some records of a block, as an encoder takes them."""

    file_index: int
    first_record: int
    records: Sequence[Any]

    def parsed(self) -> list[Any]:
        return list(self.records)

    def raw(self, index: int) -> bytes:
        return b""  # nothing is set aside here


@dataclass(frozen=True)
class WrittenRecords:
    """The records of a block that became documents.

    Attributes:
        places: their places in the block, ascending.
        sha256: of the token bytes of all their documents.
        num_tokens: tokens of all their documents.
    """

    places: list[int]
    sha256: str
    num_tokens: int


class RecordFinder:
    """Finds the records that became documents of a dataset: those that are neither quarantined nor empty.

    Args:
        manifest: the manifest of the dataset.
        tokenizer: the tokenizer that made it.

    Raises:
        DataError: the documents of the dataset are no rows of an input: it is packed, for example.
    """

    def __init__(self, manifest: DatasetManifest, tokenizer: Tokenizer) -> None:
        settings = row_settings(manifest)
        keys = make_row_form(settings).keys
        if manifest.key not in keys:
            raise DataError(f"the dataset's key {manifest.key!r} is none of its rows' keys {', '.join(keys)}")
        self._output = keys.index(manifest.key)
        self._encode = BlockEncoder(EncodeSettings(settings, manifest.dtype), tokenizer)

    def __call__(self, block: RecordBlock, records: Sequence[Any]) -> WrittenRecords:
        """Which of the parsed records of a block became documents.

        Raises:
            TokenizerError: the tokenizer gave an id outside its own vocabulary.
        """
        encoded = self._encode(_Part(block.file_index, block.first_record, records))
        documents = encoded.documents[self._output]
        bad = {record.line - block.first_record for record in encoded.bad}
        places = [place for place in range(len(records)) if place not in bad]
        if documents.num_empty:  # which ones, only a record alone can tell
            places = [place for place in places if self._has_document(records[place])]
        return WrittenRecords(
            places, hashlib.sha256(documents.token_bytes).hexdigest(), int(np.sum(documents.lengths, dtype=np.int64))
        )

    def _has_document(self, record: Any) -> bool:
        return len(self._encode(_Part(0, 1, [record])).documents[self._output].lengths) > 0


def row_settings(manifest: DatasetManifest) -> RowSettings:
    """The settings of the run that made a dataset, as its manifest tells them.

    Raises:
        DataError: it was not made from rows.
    """
    values: dict[str, Any] = {
        name: tuple(tuple(one) if isinstance(one, list) else one for one in value) if isinstance(value, list) else value
        for name, value in manifest.rows.items()
    }
    try:
        if "fim" in values:
            values["fim"] = FimSettings(**values["fim"])
        return RowSettings(**values)
    except TypeError:
        raise DataError(
            f"the documents of this dataset are no rows of an input: it was made with {', '.join(manifest.rows)}",
            "A field of the rows can score a dataset that tools/preprocess_data.py has made",
            "Score that dataset before it is packed",
        ) from None
