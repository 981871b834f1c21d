"""Rows that are conversations, whatever their columns: read, laid out by a chat template, labelled by a rule."""

from __future__ import annotations

from collections.abc import Callable

from megatron_ext.data.rows.fields import Record
from megatron_ext.data.rows.labels import LabelRule, label_all
from megatron_ext.data.rows.spans import EOS, Message, Part, Role, Segment, Span, segments_of
from megatron_ext.data.rows.templates import ChatTemplate

ReadConversation = Callable[[Record | str], list[Message]]


class ChatForm:
    """F5-F10: one output of laid-out conversations.

    Attributes:
        keys: the one output.
        has_mask: whether the rule leaves anything unlearned.
        special_names: special tokens that the segments use.

    Args:
        read: the messages of a record; raises RecordError.
        template: how they are laid out.
        rule: what of it is learned.
        append_eod: end rows with eos that their template ends otherwise.
    """

    keys = ("text",)

    def __init__(self, read: ReadConversation, template: ChatTemplate, rule: LabelRule, append_eod: bool) -> None:
        self.has_mask = rule is not label_all
        self.special_names = tuple(dict.fromkeys((*template.special_names, EOS)))
        self._read, self._template, self._rule, self._append_eod = read, template, rule, append_eod

    def segments(self, record: Record | str) -> list[list[Segment]]:
        """The segments of a row.

        Raises:
            RecordError: the record is no conversation that the template can lay out.
        """
        return [lay_out(self._read(record), self._template, self._rule, self._append_eod)]


def lay_out(conversation: list[Message], template: ChatTemplate, rule: LabelRule, append_eod: bool) -> list[Segment]:
    """The segments of a conversation.

    Raises:
        RecordError: the template has no place for one of its roles.
    """
    spans = template.render(conversation)
    if append_eod and spans[-1].part is not Part.EOS:
        spans.append(Span(EOS, Part.EOS, Role.ASSISTANT, len(conversation) - 1, special=True))
    return segments_of(spans, rule(spans))
