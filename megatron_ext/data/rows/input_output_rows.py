"""Rows of an input that may hold earlier turns between role marks, and an output (F9), as TeleChat has them.

Source: Tele-AI/Telechat, deepspeed-telechat/utils/data/data_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.fields import Record, require_object, text_at
from megatron_ext.data.rows.spans import Message, Role

FIELDS = {"input": "input", "output": "output"}
"""Names of --field, and the columns that they stand for unless told otherwise."""

USER, BOT, END = "<_user>", "<_bot>", "<_end>"


def read_input_output(record: Record | str, fields: Mapping[str, str]) -> list[Message]:
    """The turns that the input holds, then its last question and the output.

    The mark of the first question and that of the output may be left out, and so may the end marks of earlier answers.

    Raises:
        RecordError: a field is missing or odd, the marks do not agree, or the output is empty.
    """
    record = require_object(record)
    given = text_at(record, fields["input"]).removeprefix(USER)
    output = text_at(record, fields["output"]).removeprefix(BOT).removesuffix(END)
    if not output:
        raise RecordError("nothing to learn", f"key {fields['output']!r} is empty")
    for name in (USER, BOT, END):
        if name in output:
            raise RecordError("bad conversation", f"key {fields['output']!r} holds the mark {name}")
    *history, question = given.split(USER)
    messages: list[Message] = []
    for number, turn in enumerate(history, 1):
        asked, found, answered = turn.partition(BOT)
        if not found:
            raise RecordError("bad conversation", f"turn {number} of the input has no {BOT}")
        messages += [Message(Role.USER, asked), Message(Role.ASSISTANT, answered.removesuffix(END))]
    messages += [Message(Role.USER, question), Message(Role.ASSISTANT, output)]
    for place, message in enumerate(messages):
        for name in (BOT, END):
            if name in message.text:
                raise RecordError(
                    "bad conversation", f"turn {place // 2 + 1} of the input has {name} where none can stand"
                )
    return messages
