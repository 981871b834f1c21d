"""The row formats by name: what each reads, which settings it takes, and what it uses when they are not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from megatron_ext.data.rows import (
    completion_form,
    conversation_rows,
    input_output_rows,
    instruction_rows,
    moss_rows,
    preference_form,
)


@dataclass(frozen=True)
class RowFormat:
    """One value of --row-format.

    Attributes:
        name: the value.
        reads: what a record holds, in one line.
        fields: names of --field and the columns they stand for.
        default_keys: the columns of a text format; empty for every other.
        templates: values of --chat-template that it takes; None: all of them; empty: none.
        default_template: the template used without --chat-template; "" for none.
        default_rule: the label rule used without --label-rule when no template says; "" for texts, which have no rule.
        optional: fields that `--field NAME=` can say are not there.
        takes: names of further settings that it takes: "separator", "system_text", "roles".
    """

    name: str
    reads: str
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_keys: tuple[str, ...] = ()
    templates: tuple[str, ...] | None = ()
    default_template: str = ""
    default_rule: str = ""
    optional: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


def _text(name: str) -> RowFormat:
    return RowFormat(name, f'a text: {{"{name}"}}, or the columns of --json-keys; a line of a text file', {}, (name,))


ROW_FORMATS: dict[str, RowFormat] = {
    row_format.name: row_format
    for row_format in (
        _text("text"),
        _text("content"),
        _text("data"),
        RowFormat(
            "completion",
            'a text that is read and one that is learned: {"context", "completion"}',
            completion_form.COMPLETION_FIELDS,
            default_rule="m1",
            optional=("context",),
            takes=("separator",),
        ),
        RowFormat(
            "conversations",
            'messages in turn: {"conversations": [{"from", "value"}, ...]}, "system" beside it or as first message',
            conversation_rows.FIELDS,
            templates=None,
            default_template="chatml",
            optional=("system",),
            takes=("system_text", "roles"),
        ),
        RowFormat(
            "instruction",
            'one question and one answer: {"instruction", "input", "output"}, input optional',
            instruction_rows.FIELDS,
            templates=None,
            default_template="alpaca",
            optional=("input", "system"),
            takes=("separator", "system_text"),
        ),
        RowFormat(
            "input-output",
            'TeleChat: {"input", "output"}, earlier turns in input between <_user> and <_bot>',
            input_output_rows.FIELDS,
            templates=None,
            default_template="telechat",
            takes=("system_text",),
        ),
        RowFormat(
            "moss",
            'MOSS: {"meta_instruction", "chat": {"turn_1": {"Human", ..., "MOSS"}, ...}}',
            moss_rows.FIELDS,
            templates=("moss",),
            default_template="moss",
            optional=("meta_instruction", "num_turns"),
        ),
        RowFormat(
            "preference",
            'a better and a worse answer, two outputs: {"prompt" or "conversations", "chosen", "rejected"}',
            preference_form.FIELDS,
            templates=None,
            default_rule="m3",
            optional=("prompt", "conversations", "system"),
            takes=("system_text", "roles"),
        ),
        RowFormat(
            "yuan",
            'Yuan: a sample a line or in {"text"}, <n> for a line break, <sep> before the answer',
            completion_form.YUAN_FIELDS,
            default_rule="m8",
        ),
    )
}
"""Every row format by the value of --row-format."""
