"""MOSS rows: marks come off and go back on, tools' answers are given and not learned."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.moss_rows import FIELDS, read_moss
from megatron_ext.data.rows.published_templates import TEMPLATES
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.rows.spans import Message, Role
from tests.unit.data.rows.word_tokenizer import WordTokenizer, one_row

RESULTS = "<|Results|>:\n42\n<eor>\n"
TURN = {
    "Human": "<|Human|>: 六乘七<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: count<eot>\n",
    "Commands": "<|Commands|>: Calculate<eoc>\n",
    "Tool Responses": RESULTS,
    "MOSS": "<|MOSS|>: 42<eom>\n",
}
SECOND = {"MOSS": "<|MOSS|>: Bye<eom>\n", "Human": "<|Human|>: Thanks<eoh>\n"}  # the order of the keys does not matter
ROW = {"meta_instruction": "Be MOSS\n", "num_turns": "2", "chat": {"turn_1": TURN, "turn_2": SECOND}}


def test_marks_come_off():
    assert read_moss(ROW, FIELDS) == [
        Message(Role.SYSTEM, "Be MOSS\n"),
        Message(Role.USER, "六乘七"),
        Message(Role.THOUGHTS, "count"),
        Message(Role.COMMANDS, "Calculate"),
        Message(Role.TOOL, "\n42\n", lead=""),
        Message(Role.ASSISTANT, "42"),
        Message(Role.USER, "Thanks"),
        Message(Role.ASSISTANT, "Bye"),
    ]


def test_texts_without_marks_are_taken_as_they_are():
    assert read_moss({"chat": {"turn_1": {"Human": "hi", "MOSS": "ho"}}}, FIELDS) == [
        Message(Role.USER, "hi"),
        Message(Role.ASSISTANT, "ho"),
    ]


def test_the_golden_row_of_a_conversation_with_a_tool():
    def marked(name: str, *rest: str) -> list[tuple[str, int]]:
        return [(word, 1) for word in ("<", "|", *name.split("_"), "|", ">", ":", *rest)]

    tokenizer = WordTokenizer(*TEMPLATES["moss"].special_names)
    assert one_row(tokenizer, RowSettings("moss"), ROW) == [
        *[(word, 0) for word in ("Be", " ", "MOSS", "\n")],
        *marked("Human", " ", "六乘七", "<eoh>", "\n"),
        *marked("Inner_ _Thoughts", " ", "count", "<eot>", "\n"),
        *marked("Commands", " ", "Calculate", "<eoc>", "\n"),
        *marked("Results"),
        *[(word, 0) for word in ("\n", "42", "\n")],
        *[(word, 1) for word in ("<eor>", "\n")],
        *marked("MOSS", " ", "42", "<eom>", "\n"),
        *marked("Human", " ", "Thanks", "<eoh>", "\n"),
        *marked("MOSS", " ", "Bye", "<eom>", "\n"),
    ]


def with_chat(**chat: Any) -> dict[str, Any]:
    return {"chat": chat}


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("line", "not an object", "plain text"),
        ({}, "missing key", "'chat'"),
        ({"chat": [TURN]}, "wrong type", "'chat' holds a list"),
        (with_chat(), "bad conversation", "turn_1, turn_2, ... without a gap"),
        (with_chat(turn_2=TURN), "bad conversation", "without a gap"),
        (with_chat(turn_1=TURN, other=TURN), "bad conversation", "without a gap"),
        (with_chat(turn_1="hi"), "wrong type", "'turn_1' of 'chat' holds text instead of an object"),
        (with_chat(turn_1={"Human": "a"}), "missing key", "no key 'MOSS' of turn_1"),
        (with_chat(turn_1={"MOSS": "a"}), "missing key", "no key 'Human' of turn_1"),
        (with_chat(turn_1={**TURN, "Robot": "a"}), "bad conversation", "turn_1 has the unknown message 'Robot'"),
        (with_chat(turn_1={**TURN, "Commands": 3}), "wrong type", "'Commands' of turn_1 holds a number"),
        (with_chat(turn_1={"Human": "a", "MOSS": "<|MOSS|>: <eom>\n"}), "nothing to learn", "every answer is empty"),
        ({**ROW, "num_turns": 3}, "bad conversation", "'num_turns' says 3, but there are 2 turns"),
        ({**ROW, "num_turns": [2]}, "wrong type", "'num_turns' holds a list"),
    ],
)
def test_odd_rows_are_refused(record: Any, reason: str, detail: str):
    with pytest.raises(RecordError) as caught:
        read_moss(record, FIELDS)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
