"""Rows of an instruction, an input and an output (F8), as Alpaca and BELLE have them."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_ext.data.records import RecordError
from megatron_ext.data.rows.conversation_rows import with_system
from megatron_ext.data.rows.fields import Record, optional_text_at, require_object, text_at
from megatron_ext.data.rows.spans import Message, Role

FIELDS = {"instruction": "instruction", "input": "input", "output": "output", "system": "system"}
"""Names of --field, and the columns that they stand for unless told otherwise."""


def read_instruction(record: Record | str, fields: Mapping[str, str], joiner: str) -> list[Message]:
    """A conversation of one question and one answer.

    Args:
        record: the row; input and system may be missing, null or empty.
        fields: as FIELDS.
        joiner: what stands between instruction and input.

    Raises:
        RecordError: a field is missing or odd, or instruction and input, or the output, are empty.
    """
    record = require_object(record)
    instruction = text_at(record, fields["instruction"])
    given = optional_text_at(record, fields["input"])
    output = text_at(record, fields["output"])
    if not output:
        raise RecordError("nothing to learn", f"key {fields['output']!r} is empty")
    if not instruction and not given:
        raise RecordError("bad conversation", "instruction and input are empty")
    question = instruction + joiner + given if instruction and given else instruction or given
    return with_system(
        [Message(Role.USER, question), Message(Role.ASSISTANT, output)], optional_text_at(record, fields["system"])
    )
