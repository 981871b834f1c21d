"""Rows with a meta instruction and turns of up to five messages (F10), as MOSS has them.

Source: OpenMOSS/MOSS, finetune_moss.py (fields) and SFT_data/conversations (their spelling).
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ext.data.records import RecordError, kind_of
from megatron_ext.data.rows.conversation_rows import with_system
from megatron_ext.data.rows.fields import Record, object_at, optional_text_at, require_object, text_at
from megatron_ext.data.rows.published_templates import MOSS_MARKS
from megatron_ext.data.rows.spans import Message, Role

FIELDS = {"meta_instruction": "meta_instruction", "chat": "chat", "num_turns": "num_turns"}
"""Names of --field, and the columns that they stand for unless told otherwise."""

_MESSAGES = {
    "Human": Role.USER,
    "Inner Thoughts": Role.THOUGHTS,
    "Commands": Role.COMMANDS,
    "Tool Responses": Role.TOOL,
    "MOSS": Role.ASSISTANT,
}


def read_moss(record: Record | str, fields: Mapping[str, str]) -> list[Message]:
    """The messages of all turns; within a turn in the order of the model's own format, whatever the row's.

    Marks and end marks that the texts of the row carry are taken off; the template puts them back.

    Raises:
        RecordError: a field is missing or odd, turns are missing, or a turn lacks its question or its answer.
    """
    record = require_object(record)
    chat = object_at(record, fields["chat"])
    names = [f"turn_{number}" for number in range(1, len(chat) + 1)]
    if not names or set(names) != set(chat):
        raise RecordError("bad conversation", f"key {fields['chat']!r} does not hold turn_1, turn_2, ... without a gap")
    _check_count(record, fields["num_turns"], len(names))
    messages: list[Message] = []
    for name in names:
        messages += _turn(object_at(chat, name, repr(fields["chat"])), name)
    if not any(message.text for message in messages if message.role is Role.ASSISTANT):
        raise RecordError("nothing to learn", "every answer is empty")
    return with_system(messages, optional_text_at(record, fields["meta_instruction"]))


def _turn(turn: Record, name: str) -> list[Message]:
    unknown = [key for key in turn if key not in _MESSAGES]
    if unknown:
        raise RecordError("bad conversation", f"{name} has the unknown message {unknown[0][:40]!r}")
    messages = []
    for key, role in _MESSAGES.items():
        if key in turn or role in (Role.USER, Role.ASSISTANT):
            messages.append(_message(role, text_at(turn, key, name)))
    return messages


def _message(role: Role, text: str) -> Message:
    mark, end = MOSS_MARKS[role]
    if not text.startswith(mark):
        return Message(role, text)
    said = text.removeprefix(mark).removesuffix("\n").removesuffix(end)
    # published rows have one space after the mark, or a line break before what a tool answered
    return Message(role, said[1:]) if said.startswith(" ") else Message(role, said, lead="")


def _check_count(record: Record, column: str, turns: int) -> None:
    count = record.get(column) if column else None
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int | str):
        raise RecordError("wrong type", f"key {column!r} holds {kind_of(count)} instead of a number of turns")
    if str(count) != str(turns):
        raise RecordError("bad conversation", f"key {column!r} says {str(count)[:20]}, but there are {turns} turns")
