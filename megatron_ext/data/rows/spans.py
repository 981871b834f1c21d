"""The words in which rows are spoken of: messages, the spans a template lays out, the segments a tokenizer gets."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from megatron_ext.data.store.loss_mask import LEARNED

BOS, EOS = "bos", "eos"
"""Names of the special tokens that the tokenizer itself knows: its bos_id and its eod_id."""


class Role(StrEnum):
    """Who speaks. What a tool answers is given to the model, what a model asks of a tool is the assistant's."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"
    THOUGHTS = "thoughts"
    COMMANDS = "commands"

    @property
    def writer(self) -> Role:
        """The role as label rules see it: thoughts and commands are written by the assistant."""
        return Role.ASSISTANT if self in (Role.THOUGHTS, Role.COMMANDS) else self


class Part(StrEnum):
    """What a span is within its message."""

    BOS = "bos"
    MARK = "role mark"
    NAME = "role name"
    BREAK = "break before the text"
    TEXT = "text"
    END = "end mark"
    GAP = "gap between messages"
    EOS = "eos"


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: who speaks.
        text: what is said.
        lead: what stands between mark and text when it is not the template's own break.
    """

    role: Role
    text: str
    lead: str | None = None


class Span(NamedTuple):
    """A piece of a laid-out row.

    Attributes:
        text: its characters, or the name of a special token.
        part: what it is within its message.
        role: the role it belongs to, as label rules see it.
        turn: number of its message, counted from 0.
        special: `text` names a special token.
        joined: encoded together with the span before it, as the published code does.
    """

    text: str
    part: Part
    role: Role
    turn: int = 0
    special: bool = False
    joined: bool = False


class Segment(NamedTuple):
    """What is encoded in one go.

    Attributes:
        text: characters, or the name of a special token.
        learn: the code that all its tokens get in the loss mask.
        special: `text` names a special token, which is one id.
    """

    text: str
    learn: int = LEARNED
    special: bool = False


def segments_of(spans: Sequence[Span], codes: Sequence[int]) -> list[Segment]:
    """Spans with their codes as segments: joined spans of equal code become one, empty texts vanish.

    A token cannot be half learned: where a label rule parts two spans that would be encoded together, they are
    encoded apart.
    """
    segments: list[Segment] = []
    may_join = False
    for span, code in zip(spans, codes, strict=True):
        if span.special:
            segments.append(Segment(span.text, code, True))
            may_join = False
        elif not span.text:
            may_join = may_join and span.joined
        elif span.joined and may_join and segments[-1].learn == code:
            segments[-1] = Segment(segments[-1].text + span.text, code)
        else:
            segments.append(Segment(span.text, code))
            may_join = True
    return segments
