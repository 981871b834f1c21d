"""Rows with a part that is read and one that is learned: context and completion (F4), and Yuan's lines (F12)."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.fields import Record, optional_text_at, require_object, text_at
from megatron_ext.data.rows.labels import LabelRule, label_all
from megatron_ext.data.rows.spans import BOS, EOS, Part, Role, Segment, Span, segments_of

COMPLETION_FIELDS = {"context": "context", "completion": "completion"}
YUAN_FIELDS = {"text": "text"}
"""Names of --field, and the columns that they stand for unless told otherwise."""

YUAN_SEPARATOR, YUAN_NEWLINE = "<sep>", "<n>"

_BEGIN = Span(BOS, Part.BOS, Role.SYSTEM, special=True)
_END = Span(EOS, Part.EOS, Role.ASSISTANT, special=True)


class CompletionForm:
    """F4: bos, context, completion; context and completion are encoded apart.

    Source: pleisto/yuren-13b, tools/prepare_dataset (no eos between documents unless append_eod asks for one; bos is
    left out when the tokenizer has none).

    Attributes:
        keys: the one output.
        has_mask: whether the rule leaves anything unlearned.
        special_names: special tokens that the segments use.

    Args:
        fields: as COMPLETION_FIELDS; the context may be missing, null or empty.
        separator: text after a context that is not empty; part of the context.
        rule: the label rule.
        append_eod: end each row with eos.
    """

    keys = ("text",)
    special_names = (BOS, EOS)

    def __init__(self, fields: Mapping[str, str], separator: str, rule: LabelRule, append_eod: bool) -> None:
        self.has_mask = rule is not label_all
        self._fields, self._separator, self._rule = fields, separator, rule
        self._end = (_END,) if append_eod else ()

    def segments(self, record: Record | str) -> list[list[Segment]]:
        """The segments of a row; none when context and completion are both empty.

        Raises:
            RecordError: a field is missing or odd, or there is a context and no completion.
        """
        record = require_object(record)
        completion = text_at(record, self._fields["completion"])
        context = optional_text_at(record, self._fields["context"])
        if not completion:
            if context:
                raise RecordError("nothing to learn", f"key {self._fields['completion']!r} is empty")
            return [[]]
        if context:
            context += self._separator
        spans = [
            _BEGIN,
            Span(context, Part.TEXT, Role.USER),
            Span(completion, Part.TEXT, Role.ASSISTANT, 1),
            *self._end,
        ]
        return [segments_of(spans, self._rule(spans))]


class YuanForm:
    """F12: a sample a line, `<n>` for a line break, `<sep>` between instruction and answer; ended by eos.

    Source: IEIT-Yuan/Yuan-2.0, docs/data_process.md and tools/preprocess_data_yuan.py (a leading `<n>` and white space
    around the line are dropped, `[SEP]` is another spelling of the separator, eos always ends a sample).

    Attributes:
        keys: the one output.
        has_mask: whether the rule leaves anything unlearned.
        special_names: special tokens that the segments use.

    Args:
        fields: as YUAN_FIELDS, for records that are objects.
        rule: the label rule.
    """

    keys = ("text",)
    special_names = (YUAN_SEPARATOR, EOS)

    def __init__(self, fields: Mapping[str, str], rule: LabelRule) -> None:
        self.has_mask = rule is not label_all
        self._fields, self._rule = fields, rule

    def segments(self, record: Record | str) -> list[list[Segment]]:
        """The segments of a line; none for a line without text.

        Raises:
            RecordError: the record has no text, or nothing stands after its separator.
        """
        line = record if isinstance(record, str) else text_at(record, self._fields["text"])
        line = line.removeprefix(YUAN_NEWLINE).strip().replace(YUAN_NEWLINE, "\n").replace("[SEP]", YUAN_SEPARATOR)
        if not line.strip("\n"):
            return [[]]
        first, *rest = line.split(YUAN_SEPARATOR)
        if rest and not "".join(rest).strip():
            raise RecordError("nothing to learn", f"nothing stands after {YUAN_SEPARATOR}")
        spans = [Span(first, Part.TEXT, Role.USER if rest else Role.ASSISTANT)]
        for answer in rest:
            spans.append(Span(YUAN_SEPARATOR, Part.MARK, Role.ASSISTANT, 1, special=True))
            spans.append(Span(answer, Part.TEXT, Role.ASSISTANT, 1))
        spans.append(_END)
        return [segments_of(spans, self._rule(spans))]
