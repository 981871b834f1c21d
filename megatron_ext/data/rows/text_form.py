"""Rows that are texts: one output for each of the wanted columns, no loss mask; the hot path of pretraining data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ext.data.records import RecordError, texts_of
from megatron_ext.data.rows.fim import fim_segments
from megatron_ext.data.rows.settings import FimSettings
from megatron_ext.data.rows.spans import EOS, Segment


class TextForm:
    """F1-F3: the texts of some columns, or a record that is a plain text.

    Attributes:
        keys: the columns, one output each.
        has_mask: whether the outputs have a loss mask; never.
        special_names: special tokens that the segments use.

    Args:
        keys: the columns, at least one.
        fim: fill-in-the-middle; None for none.
    """

    has_mask = False

    def __init__(self, keys: tuple[str, ...], fim: FimSettings | None) -> None:
        self.keys = keys
        self.fim = fim
        names = () if fim is None else (fim.prefix_token, fim.middle_token, fim.suffix_token)
        self.special_names: tuple[str, ...] = (*names, EOS)

    def columns(
        self, records: Sequence[Mapping[str, Any] | str | RecordError]
    ) -> tuple[list[list[str]], list[tuple[int, RecordError]]]:
        """The texts of each column, and (place, reason) of the records that do not have them all."""
        if len(self.keys) == 1:
            return self._one_column(records)
        columns: list[list[str]] = [[] for _ in self.keys]
        bad: list[tuple[int, RecordError]] = []
        for place, record in enumerate(records):
            try:
                texts = self.texts(record)
            except RecordError as error:
                bad.append((place, error))
                continue
            for column, text in zip(columns, texts, strict=True):
                column.append(text)
        return columns, bad

    def _one_column(
        self, records: Sequence[Mapping[str, Any] | str | RecordError]
    ) -> tuple[list[list[str]], list[tuple[int, RecordError]]]:
        key = self.keys[0]
        column: list[str] = []
        bad: list[tuple[int, RecordError]] = []
        for place, record in enumerate(records):
            text = record.get(key) if type(record) is dict else record
            if type(text) is str:
                column.append(text)
            else:
                bad.append((place, self._why_not(record)))
        return [column], bad

    def texts(self, record: Mapping[str, Any] | str | RecordError) -> list[str]:
        """The text of each column of one record.

        Raises:
            RecordError: it does not have them all.
        """
        if isinstance(record, RecordError):
            raise record
        if isinstance(record, str):
            if len(self.keys) > 1:
                raise RecordError("not an object", f"a plain text cannot fill the keys {', '.join(self.keys)}")
            return [record]
        return texts_of(record, self.keys)

    def segments(self, record: Mapping[str, Any] | str) -> list[list[Segment]]:
        """The text of each column as segments, rearranged where fill-in-the-middle says so.

        Raises:
            RecordError: the record does not have them all.
        """
        texts = self.texts(record)
        if self.fim is None:
            return [[Segment(text)] if text else [] for text in texts]
        return [fim_segments(self.fim, text) for text in texts]

    def _why_not(self, record: Mapping[str, Any] | str | RecordError) -> RecordError:
        try:
            self.texts(record)
        except RecordError as error:
            return error
        raise AssertionError("a record with all its texts has none")  # a subclass of str: no parser makes one
