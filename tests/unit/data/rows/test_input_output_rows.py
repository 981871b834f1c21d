"""TeleChat rows: earlier turns hide in the input between marks, whose counts must agree."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.input_output_rows import FIELDS, read_input_output
from megatron_ext.data.rows.spans import Role


def talk(given: str, output: str) -> list[str]:
    messages = read_input_output({"input": given, "output": output}, FIELDS)
    assert [message.role for message in messages] == [Role.USER, Role.ASSISTANT] * (len(messages) // 2)
    return [message.text for message in messages]


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("问<_bot>答<_user>why", "so"),
        ("<_user>问<_bot>答<_user>why", "<_bot>so"),
        ("<_user>问<_bot>答<_end><_user>why", "<_bot>so<_end>"),
    ],
)
def test_outer_marks_may_be_left_out(given: str, output: str):
    assert talk(given, output) == ["问", "答", "why", "so"]


def test_a_row_without_history_is_one_turn():
    assert talk("why", "so\n<b>") == ["why", "so\n<b>"]


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ("line", "not an object", "plain text"),
        ({"output": "x"}, "missing key", "'input'"),
        ({"input": "x", "output": 3}, "wrong type", "'output' holds a number"),
        ({"input": "x", "output": ""}, "nothing to learn", "'output' is empty"),
        ({"input": "x", "output": "<_bot>"}, "nothing to learn", "'output' is empty"),
        ({"input": "a<_user>b", "output": "x"}, "bad conversation", "turn 1 of the input has no <_bot>"),
        ({"input": "a<_bot>b", "output": "x"}, "bad conversation", "turn 1 of the input has <_bot>"),
        ({"input": "a<_bot>b<_bot>c<_user>d", "output": "x"}, "bad conversation", "turn 1 of the input has <_bot>"),
        ({"input": "a<_end>", "output": "x"}, "bad conversation", "turn 1 of the input has <_end>"),
        ({"input": "a", "output": "x<_user>y"}, "bad conversation", "'output' holds the mark <_user>"),
        ({"input": "a", "output": "x<_bot>y"}, "bad conversation", "'output' holds the mark <_bot>"),
    ],
)
def test_marks_that_do_not_agree_are_refused(record: Any, reason: str, detail: str):
    with pytest.raises(RecordError) as caught:
        read_input_output(record, FIELDS)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
