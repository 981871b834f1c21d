"""Conversations are read by any of the usual names, and refused when speakers do not keep their order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.records import REASONS, RecordError
from megatron_ext.data.rows.conversation_rows import FIELDS, USUAL_ROLES, check_speakers, read_conversation
from megatron_ext.data.rows.spans import Message, Role

S, U, A, T = Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL


def row(*speakers: str, **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": name, "value": f"{name} text"} for name in speakers], **columns}


def roles_of(record: dict[str, Any]) -> list[Role]:
    return [message.role for message in read_conversation(record, FIELDS, USUAL_ROLES)]


@pytest.mark.parametrize(
    ("record", "roles"),
    [
        (row("human", "assistant", id="7"), [U, A]),
        (row("Human", "GPT", "user", "bot"), [U, A, U, A]),
        (row("system", "user", "assistant"), [S, U, A]),
        (row("user", "assistant", system="Be kind"), [S, U, A]),
        (row("user", "assistant", system=None), [U, A]),
        (row("user", "function_call", "observation", "gpt"), [U, A, T, A]),
        (row("user", "assistant", "function", "assistant"), [U, A, T, A]),
    ],
)
def test_usual_names_are_understood(record: dict[str, Any], roles: list[Role]):
    assert roles_of(record) == roles


def test_columns_and_roles_can_have_other_names():
    record = {"messages": [{"role": "客户", "content": "a"}, {"role": "客服", "content": "b"}]}
    fields = {**FIELDS, "conversations": "messages", "from": "role", "value": "content"}
    roles = {"客户": U, "客服": A}
    assert read_conversation(record, fields, roles) == [Message(U, "a"), Message(A, "b")]


REFUSED = [
    ("a line", "not an object", "plain text"),
    ({}, "missing key", "no key 'conversations'"),
    ({"conversations": []}, "bad conversation", "an empty list"),
    ({"conversations": "hi"}, "wrong type", "holds text instead of a list"),
    ({"conversations": ["hi"]}, "wrong type", "message 1 is text instead of an object"),
    ({"conversations": [{"value": "x"}]}, "missing key", "no key 'from' of message 1"),
    ({"conversations": [{"from": "user", "value": None}]}, "wrong type", "'value' of message 1 holds null"),
    (row("user", "wizard"), "bad conversation", "message 2 has the unknown role 'wizard'"),
    (row("user"), "bad conversation", "no message is the assistant's"),
    (row("system"), "bad conversation", "no message is the assistant's"),
    (row("assistant", "user"), "bad conversation", "message 1 is of role assistant, where user must speak"),
    (row("tool", "assistant"), "bad conversation", "message 1 is of role tool, where user must speak"),
    (row("user", "user", "assistant"), "bad conversation", "message 2 is of role user, where assistant must speak"),
    (row("user", "assistant", "assistant"), "bad conversation", "message 3 is of role assistant, where user or tool"),
    (row("user", "assistant", "user"), "bad conversation", "the last message is of role user and has no answer"),
    (row("user", "assistant", "system", "assistant"), "bad conversation", "message 3 is of role system"),
    (row("system", "user", "assistant", system="x"), "bad conversation", "a system column and a system message"),
    (
        {"conversations": [{"from": "user", "value": "x"}, {"from": "gpt", "value": ""}]},
        "nothing to learn",
        "every answer is empty",
    ),
]


@pytest.mark.parametrize(("record", "reason", "detail"), REFUSED, ids=[detail[:50] for *_, detail in REFUSED])
def test_odd_conversations_are_refused(record: Any, reason: str, detail: str):
    with pytest.raises(RecordError) as caught:
        read_conversation(record, FIELDS, USUAL_ROLES)
    assert caught.value.reason == reason
    assert detail in caught.value.detail
    assert reason in REASONS


@given(st.lists(st.sampled_from([S, U, A, T]), max_size=7))
def test_a_conversation_that_passes_begins_with_a_user_alternates_and_ends_with_an_answer(roles: list[Role]):
    messages = [Message(role, "x") for role in roles]
    try:
        check_speakers(messages)
    except RecordError:
        return
    talk = roles[1:] if roles[0] is S else roles
    assert talk[0] is U
    assert set(talk[0::2]) <= {U, T}
    assert set(talk[1::2]) == {A}
    assert len(talk) % 2 == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["from", "value", "conversations", "system"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["conversations", "system"]), JSON))
def test_any_object_gives_messages_or_a_known_reason(record: dict[str, Any]):
    try:
        read_conversation(record, FIELDS, USUAL_ROLES)
    except RecordError as error:
        assert error.reason in REASONS
