"""Rows with a better and a worse answer (F11): two outputs whose documents correspond one to one.

Source: LianjiaTech/BELLE, train/README_RLHF.md (prompt, chosen, rejected as texts); shibing624/MedicalGPT,
training/dpo_training.py (conversations, and answers that are texts or messages).
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows import conversation_rows
from megatron_ext.data.rows.chat_form import lay_out
from megatron_ext.data.rows.fields import Record, list_at, optional_text_at, require_object, text_at
from megatron_ext.data.rows.labels import LabelRule, label_all
from megatron_ext.data.rows.spans import EOS, Message, Part, Role, Segment, Span, segments_of
from megatron_ext.data.rows.templates import ChatTemplate

FIELDS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", **conversation_rows.FIELDS}
"""Names of --field, and the columns that they stand for unless told otherwise."""


class PreferenceForm:
    """F11: outputs "chosen" and "rejected"; document i of both comes from one record.

    Without a template the prompt is a text that holds its marks already; prompt and answer are encoded apart and eos
    ends the answer. `--field prompt=` says that there is no prompt and the answers are whole texts. With a template the
    prompt is a user's text, or the conversations column holds the messages before the answer.

    Attributes:
        keys: the two outputs.
        has_mask: whether the rule leaves anything unlearned.
        special_names: special tokens that the segments use.

    Args:
        fields: as FIELDS.
        roles: role of each name, in lower case.
        template: how conversations are laid out, or None.
        rule: what of it is learned.
        append_eod: end rows with eos that their template ends otherwise.
    """

    keys = ("chosen", "rejected")

    def __init__(
        self,
        fields: Mapping[str, str],
        roles: Mapping[str, Role],
        template: ChatTemplate | None,
        rule: LabelRule,
        append_eod: bool,
    ) -> None:
        self.has_mask = rule is not label_all
        self.special_names = (*(template.special_names if template else ()), EOS)
        self._fields, self._roles, self._template = fields, roles, template
        self._rule, self._append_eod = rule, append_eod

    def segments(self, record: Record | str) -> list[list[Segment]]:
        """The segments of both answers, each after the prompt.

        Raises:
            RecordError: a field is missing or odd, an answer is empty, or both are the same.
        """
        record = require_object(record)
        answers = [self._answer(record, self._fields[key]) for key in self.keys]
        if answers[0] == answers[1]:
            raise RecordError("nothing to learn", "the chosen and the rejected answer are the same")
        if self._template is None:
            return self._plain(record, answers)
        before = self._messages(record)
        outputs = []
        for answer in answers:
            conversation = [*before, Message(Role.ASSISTANT, answer)]
            conversation_rows.check_speakers(conversation)
            outputs.append(lay_out(conversation, self._template, self._rule, self._append_eod))
        return outputs

    def _plain(self, record: Record, answers: list[str]) -> list[list[Segment]]:
        column = self._fields["prompt"]
        prompt = text_at(record, column) if column else ""
        outputs = []
        for answer in answers:
            spans = [
                Span(prompt, Part.TEXT, Role.USER),
                Span(answer, Part.TEXT, Role.ASSISTANT, 1),
                Span(EOS, Part.EOS, Role.ASSISTANT, 1, special=True),
            ]
            outputs.append(segments_of(spans, self._rule(spans)))
        return outputs

    def _messages(self, record: Record) -> list[Message]:
        column = self._fields["conversations"]
        if column and column in record:
            messages = conversation_rows.read_messages(list_at(record, column), self._fields, self._roles)
        else:
            messages = [Message(Role.USER, text_at(record, self._fields["prompt"]))]
        return conversation_rows.with_system(messages, optional_text_at(record, self._fields["system"]))

    def _answer(self, record: Record, column: str) -> str:
        answer = record.get(column)
        if isinstance(answer, dict):
            text = text_at(answer, self._fields["value"], repr(column))
        else:
            text = text_at(record, column)
        if not text:
            raise RecordError("nothing to learn", f"key {column!r} is empty")
        return text
