"""How a template lays out a conversation; the published templates have their own golden tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.spans import EOS, Message, Part, Role, Span
from megatron_ext.data.rows.templates import END_OF_SENTENCE, TEXT, ChatTemplate, Piece, end, mark

TEMPLATE = ChatTemplate(
    "small",
    "nowhere",
    "m2",
    {
        Role.USER: (mark("<u>"), Piece(Part.BREAK, " "), TEXT, Piece(Part.MARK, "=>", role=Role.ASSISTANT)),
        Role.ASSISTANT: (TEXT, end("<e>")),
        Role.THOUGHTS: (TEXT,),
    },
    last_answer=(TEXT,),
    closing=(END_OF_SENTENCE,),
)
TALK = [
    Message(Role.USER, "a"),
    Message(Role.ASSISTANT, "b"),
    Message(Role.USER, "c", lead="\n"),
    Message(Role.ASSISTANT, "d"),
]


def test_spans_carry_part_role_and_turn():
    assert TEMPLATE.render(TALK) == [
        Span("<u>", Part.MARK, Role.USER, 0, special=True),
        Span(" ", Part.BREAK, Role.USER, 0),
        Span("a", Part.TEXT, Role.USER, 0),
        Span("=>", Part.MARK, Role.ASSISTANT, 0),
        Span("b", Part.TEXT, Role.ASSISTANT, 1),
        Span("<e>", Part.END, Role.ASSISTANT, 1, special=True),
        Span("<u>", Part.MARK, Role.USER, 2, special=True),
        Span("\n", Part.BREAK, Role.USER, 2),
        Span("c", Part.TEXT, Role.USER, 2),
        Span("=>", Part.MARK, Role.ASSISTANT, 2),
        Span("d", Part.TEXT, Role.ASSISTANT, 3),
        Span(EOS, Part.EOS, Role.ASSISTANT, 3, special=True),
    ]


def test_a_role_without_pieces_is_refused():
    with pytest.raises(RecordError, match="chat template small has no place for a message of role tool"):
        TEMPLATE.render([Message(Role.TOOL, "x"), *TALK])


def test_thoughts_are_the_assistants_to_label_rules():
    assert TEMPLATE.render([Message(Role.THOUGHTS, "x"), *TALK])[0].role is Role.ASSISTANT


def test_a_default_system_text_fills_only_the_gap():
    template = replace(TEMPLATE, default_system="S", messages={**TEMPLATE.messages, Role.SYSTEM: (TEXT,)})
    assert template.render(TALK)[0] == Span("S", Part.TEXT, Role.SYSTEM, 0)
    assert template.render(TALK)[1].turn == 1
    assert template.render([Message(Role.SYSTEM, "own"), *TALK])[0].text == "own"


def test_special_names_are_listed_once():
    assert TEMPLATE.special_names == ("<u>", "<e>", EOS)
