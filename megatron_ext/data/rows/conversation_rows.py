"""Rows that are conversations already (F5-F7), and the order of speakers that every conversation must keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ext.data.records import RecordError, kind_of
from megatron_ext.data.rows.fields import Record, list_at, optional_text_at, require_object, text_at
from megatron_ext.data.rows.spans import Message, Role

USUAL_ROLES: dict[str, Role] = {
    "system": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "function": Role.TOOL,
    "tool": Role.TOOL,
    "observation": Role.TOOL,
}
"""Names of roles in lower case, as Yuren, BELLE, Baichuan 2, ShareGPT and MedicalGPT write them."""

FIELDS = {"conversations": "conversations", "from": "from", "value": "value", "system": "system"}
"""Names of --field, and the columns that they stand for unless told otherwise."""


def read_conversation(record: Record | str, fields: Mapping[str, str], roles: Mapping[str, Role]) -> list[Message]:
    """The messages of a row.

    Args:
        record: the row.
        fields: as FIELDS; the system column may be missing from a row.
        roles: role of each name, in lower case.

    Raises:
        RecordError: a field is missing or odd, or the speakers do not keep their order.
    """
    record = require_object(record)
    messages = with_system(
        read_messages(list_at(record, fields["conversations"]), fields, roles),
        optional_text_at(record, fields["system"]),
    )
    check_speakers(messages)
    return messages


def read_messages(entries: Sequence[Any], fields: Mapping[str, str], roles: Mapping[str, Role]) -> list[Message]:
    """The messages of a list of objects.

    Raises:
        RecordError: an entry is no object with a known role and a text.
    """
    messages = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise RecordError("wrong type", f"message {number} is {kind_of(entry)} instead of an object")
        name = text_at(entry, fields["from"], f"message {number}")
        role = roles.get(name.lower())
        if role is None:
            raise RecordError("bad conversation", f"message {number} has the unknown role {name[:40]!r}")
        messages.append(Message(role, text_at(entry, fields["value"], f"message {number}")))
    return messages


def with_system(messages: list[Message], text: str) -> list[Message]:
    """The messages, with a system message before them when `text` is not empty.

    Raises:
        RecordError: there is one already.
    """
    if not text:
        return messages
    if messages and messages[0].role is Role.SYSTEM:
        raise RecordError("bad conversation", "a system column and a system message")
    return [Message(Role.SYSTEM, text), *messages]


def check_speakers(messages: Sequence[Message]) -> None:
    """A system message or none, then questions (the first a user's, later ones also a tool's) and answers in turn.

    Raises:
        RecordError: the order is another, the last message is no answer, or no answer says anything.
    """
    talk = messages[1:] if messages and messages[0].role is Role.SYSTEM else messages
    first = 1 + len(messages) - len(talk)
    if not any(message.role is Role.ASSISTANT for message in talk):
        raise RecordError("bad conversation", "no message is the assistant's")
    for place, message in enumerate(talk):
        if place % 2:
            expected = message.role is Role.ASSISTANT
        else:
            expected = message.role is Role.USER or (place > 0 and message.role is Role.TOOL)
        if not expected:
            wanted = "assistant" if place % 2 else ("user or tool" if place else "user")
            raise RecordError(
                "bad conversation", f"message {first + place} is of role {message.role}, where {wanted} must speak"
            )
    if len(talk) % 2:
        raise RecordError("bad conversation", f"the last message is of role {talk[-1].role} and has no answer")
    if not any(message.text for message in talk if message.role is Role.ASSISTANT):
        raise RecordError("nothing to learn", "every answer is empty")
