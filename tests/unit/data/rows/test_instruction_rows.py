"""Instruction, input and output become one question and one answer."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.instruction_rows import FIELDS, read_instruction
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.rows.spans import Message, Role
from tests.unit.data.rows.word_tokenizer import WordTokenizer, one_row


def question(record: dict[str, Any], joiner: str = "|") -> str:
    return read_instruction(record, FIELDS, joiner)[-2].text


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": None}])
def test_the_input_is_optional(given: dict[str, Any]):
    assert question({"instruction": "翻译", "output": "x", **given}) == "翻译"


def test_input_and_system_are_joined_in():
    record = {"instruction": "Add", "input": "1 2", "output": "3", "system": "S"}
    assert read_instruction(record, FIELDS, "|") == [
        Message(Role.SYSTEM, "S"),
        Message(Role.USER, "Add|1 2"),
        Message(Role.ASSISTANT, "3"),
    ]
    assert question({"instruction": "", "input": "1 2", "output": "3"}) == "1 2"


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("line", "not an object", "plain text"),
        ({"output": "x"}, "missing key", "'instruction'"),
        ({"instruction": "a"}, "missing key", "'output'"),
        ({"instruction": "a", "input": ["b"], "output": "x"}, "wrong type", "'input' holds a list"),
        ({"instruction": "a", "output": ""}, "nothing to learn", "'output' is empty"),
        ({"instruction": "", "input": "", "output": "x"}, "bad conversation", "instruction and input are empty"),
    ],
)
def test_odd_rows_are_refused(record: Any, reason: str, detail: str):
    with pytest.raises(RecordError) as caught:
        read_instruction(record, FIELDS, "")
    assert caught.value.reason == reason
    assert detail in caught.value.detail


RECORD = {"instruction": "Add", "input": "1 2", "output": "3"}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("alpaca", "# # # ␣ Instruction : ⏎ Add ⏎⏎ # # # ␣ Input : ⏎ 1 ␣ 2 ⏎⏎ # # # ␣ Response : ⏎ 3 </s>"),
        ("belle", "Human : ␣⏎ Add1 ␣ 2 ⏎⏎ Assistant : ␣⏎ 3 </s>"),
    ],
)
def test_alpaca_puts_the_input_under_a_heading_and_belle_behind_the_instruction(template: str, words: str):
    expected = [word.replace("␣", " ").replace("⏎", "\n") for word in words.split(" ")]
    row = one_row(WordTokenizer(), RowSettings("instruction", chat_template=template), RECORD)
    assert [word for word, _ in row] == expected
    assert [word for word, code in row if code] == ["3", "</s>"]


def test_the_separator_is_a_setting():
    row = one_row(WordTokenizer(), RowSettings("instruction", chat_template="belle", separator="\n"), RECORD)
    assert [word for word, _ in row][3:8] == ["Add", "\n", "1", " ", "2"]
