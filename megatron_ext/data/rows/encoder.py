"""A block of records to token bytes and loss-mask bytes; a pure function of (settings, block). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_ext import native
from megatron_ext.data.records import BadRecord, RecordError
from megatron_ext.data.rows.added_ids import ids_around_texts
from megatron_ext.data.rows.forms import RowForm, make_row_form, special_ids_of
from megatron_ext.data.rows.settings import DROP, EncodeSettings
from megatron_ext.data.rows.spans import EOS, Segment
from megatron_ext.data.rows.text_form import TextForm
from megatron_ext.data.rows.token_rows import TokenRows, rows_of_segments, rows_of_texts
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import Tokenizer

_Bad = list[tuple[int, RecordError]]  # (place in the block, why), in order of place


class Block(Protocol):
    """What the encoder uses of a block of records (data/sources)."""

    @property
    def file_index(self) -> int:
        """Position of the file in the list of inputs."""

    @property
    def first_record(self) -> int:
        """Number of the first record in its file, counted from 1."""

    def parsed(self) -> list[Any]:
        """The records: dict, str, or the RecordError that says why there is none."""

    def raw(self, index: int) -> bytes:
        """One record as it stands in the input."""


@dataclass(frozen=True)
class KeyDocuments:
    """Documents of one output of one block.

    A text is empty when it is "" or the tokenizer finds no token in it; it gives no document.

    Attributes:
        token_bytes: tokens laid end to end, in the stored type.
        lengths: int64 `[documents]`, tokens of each.
        largest_id: largest token id, -1 for none.
        num_empty: texts that gave no document.
        mask_bytes: a loss-mask code for each token, or None for an output without a mask.
    """

    token_bytes: bytes
    lengths: NDArray[np.int64]
    largest_id: int
    num_empty: int
    mask_bytes: bytes | None = None


@dataclass(frozen=True)
class EncodedBlock:
    """Everything a block gave: records = documents + empty (per output) + bad."""

    num_records: int
    documents: list[KeyDocuments]
    bad: list[BadRecord]


class BlockEncoder:
    """Turns blocks of records into token bytes.

    Args:
        settings: what to do.
        tokenizer: the tokenizer of `settings`.

    Raises:
        DataError: settings that do not go together.
        TokenizerError: the vocabulary lacks a special token that the rows need.
    """

    def __init__(self, settings: EncodeSettings, tokenizer: Tokenizer) -> None:
        self._settings = settings.rows
        self._itemsize = np.dtype(settings.dtype).itemsize
        self._tokenizer = tokenizer
        self._form: RowForm = make_row_form(settings.rows)
        self._special_ids = special_ids_of(self._form, settings.rows, tokenizer)
        eod = self._special_ids.get(EOS)
        self._eod = tokenizer.eod_id if eod is None else eod
        # texts are ended here, in one go; other forms lay out their own ends, which label rules may judge
        self._appended = self._eod if settings.rows.append_eod and isinstance(self._form, TextForm) else -1
        self._around: tuple[list[int], list[int]] = ([], [])
        if isinstance(self._form, TextForm) and self._form.fim is not None:
            self._around = ids_around_texts(tokenizer)

    def __call__(self, block: Block) -> EncodedBlock:
        """Documents of each output in the order of the records, and the records that gave none.

        Raises:
            TokenizerError: the tokenizer gave an id outside its own vocabulary.
        """
        records: list[Any] = block.parsed()
        try:
            outputs, bad = self._encode(records)
        except TokenizerError:
            outputs, bad = self._encode([self._unless_refused(record) for record in records])
        documents, bad = self._finish(outputs, bad, len(records))
        told = [
            BadRecord(block.file_index, block.first_record + place, error.reason, error.detail, block.raw(place))
            for place, error in bad
        ]
        return EncodedBlock(len(records), documents, told)

    def _encode(self, records: Sequence[Any]) -> tuple[list[TokenRows], _Bad]:
        """A row per output for each record that is not bad."""
        if isinstance(self._form, TextForm) and self._form.fim is None:
            columns, bad = self._form.columns(records)
            return [rows_of_texts(column, self._tokenizer) for column in columns], bad
        rows: list[list[list[Segment]]] = []
        bad = []
        for place, record in enumerate(records):
            try:
                if isinstance(record, RecordError):
                    raise record
                rows.append(self._form.segments(record))
            except RecordError as error:
                bad.append((place, error))
        outputs = [
            rows_of_segments([row[output] for row in rows], self._tokenizer, self._special_ids)
            for output in range(len(self._form.keys))
        ]
        if any(self._around):
            outputs = [output.with_ends(*self._around) for output in outputs]
        return outputs, bad

    def _unless_refused(self, record: Any) -> Any:
        """The record, or why the tokenizer refuses it: NullTokenizer alone does, and that concerns no other record."""
        try:
            self._encode([record])
        except TokenizerError as error:
            return RecordError("not tokenizable", str(error))
        return record

    def _finish(self, outputs: list[TokenRows], bad: _Bad, num_records: int) -> tuple[list[KeyDocuments], _Bad]:
        """Judge, cut and pack; row i of each output belongs to the i-th record that is not in `bad`."""
        limit = self._settings.max_length
        if limit is None and not self._form.has_mask:
            return [self._pack(output, self._appended) for output in outputs], bad
        if limit is not None and self._appended >= 0:
            outputs = [output.with_ends([], [self._eod]) for output in outputs]
        refused = _refused_rows(outputs, limit, self._settings.over_long == DROP)
        if refused:
            places = np.delete(np.arange(num_records), [place for place, _ in bad])
            bad = sorted([*bad, *((int(places[row]), error) for row, error in refused.items())], key=lambda one: one[0])
            keep = np.ones(len(places), np.bool_)
            keep[list(refused)] = False
            outputs = [output.select(keep) for output in outputs]
        if limit is not None:
            return [self._pack(output.cut(limit, self._eod), -1) for output in outputs], bad
        return [self._pack(output, self._appended) for output in outputs], bad

    def _pack(self, rows: TokenRows, eod: int) -> KeyDocuments:
        try:
            token_bytes, lengths, largest = native.pack_tokens(rows.ids, rows.lengths, eod, self._itemsize)
        except ValueError:
            largest = None
        if largest is None or largest >= self._tokenizer.vocab_size:
            raise TokenizerError(
                f"the tokenizer gave ids from {rows.ids.min(initial=0)} to {rows.ids.max(initial=0)}",
                f"Its vocabulary has ids 0 to {self._tokenizer.vocab_size - 1}, stored in {self._itemsize} bytes each",
                "The tokenizer file is inconsistent; use another",
            )
        mask = rows.codes.tobytes() if self._form.has_mask and rows.codes is not None else None
        return KeyDocuments(token_bytes, lengths, int(largest), len(rows.lengths) - len(lengths), mask)


def _refused_rows(outputs: Sequence[TokenRows], limit: int | None, drop: bool) -> dict[int, RecordError]:
    """Rows that are too long or teach nothing, in any output, and why."""
    refused: dict[int, RecordError] = {}
    for output in outputs:
        if limit is not None and drop:
            for row in np.flatnonzero(output.over(limit)).tolist():
                reason = RecordError("too long", f"{output.lengths[row]} tokens, but --max-length is {limit}")
                refused.setdefault(row, reason)
        for row in np.flatnonzero((output.lengths > 0) & (output.learned(limit) == 0)).tolist():
            cut = limit is not None and output.lengths[row] > limit
            detail = f"none of its first {limit} tokens" if cut else f"none of its {output.lengths[row]} tokens"
            refused.setdefault(row, RecordError("nothing to learn", f"{detail} is learned"))
    return refused
