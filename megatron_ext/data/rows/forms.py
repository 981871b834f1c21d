"""The one place that makes a row form of the settings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Protocol

from megatron_ext.data.rows.chat_form import ChatForm, ReadConversation
from megatron_ext.data.rows.completion_form import CompletionForm, YuanForm
from megatron_ext.data.rows.conversation_rows import USUAL_ROLES, read_conversation
from megatron_ext.data.rows.fields import Record
from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.rows.input_output_rows import read_input_output
from megatron_ext.data.rows.instruction_rows import read_instruction
from megatron_ext.data.rows.labels import LABEL_RULES, LabelRule
from megatron_ext.data.rows.moss_rows import read_moss
from megatron_ext.data.rows.preference_form import PreferenceForm
from megatron_ext.data.rows.published_templates import TEMPLATES
from megatron_ext.data.rows.row_checks import check_rows
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.rows.spans import Role, Segment
from megatron_ext.data.rows.special_tokens import resolve_special_tokens
from megatron_ext.data.rows.templates import ChatTemplate
from megatron_ext.data.rows.text_form import TextForm
from megatron_ext.tokenizer.base import Tokenizer


class RowForm(Protocol):
    """How a record becomes segments."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the outputs, one dataset each."""

    @property
    def has_mask(self) -> bool:
        """Whether the outputs have a loss mask."""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Names of the special tokens that the segments use."""

    def segments(self, record: Record | str) -> list[list[Segment]]:
        """The segments of each output.

        Raises:
            RecordError: the record does not have this form.
        """


def make_row_form(settings: RowSettings) -> RowForm:
    """The row form that some settings describe.

    Raises:
        DataError: settings that are unknown or do not go together.
    """
    check_rows(settings)
    row_format = ROW_FORMATS[settings.row_format]
    fields = {**row_format.fields, **dict(settings.fields)}
    roles = USUAL_ROLES | {name.lower(): Role(role) for name, role in settings.roles}
    if row_format.default_keys:
        return TextForm(settings.json_keys or row_format.default_keys, settings.fim if settings.fim.rate > 0 else None)
    template = _template(settings)
    rule = _rule(settings, template)
    if row_format.name == "completion":
        return CompletionForm(fields, settings.separator or "", rule, settings.append_eod)
    if row_format.name == "yuan":
        return YuanForm(fields, rule)
    if row_format.name == "preference":
        return PreferenceForm(fields, roles, template, rule, settings.append_eod)
    assert template is not None  # every other format has a default template
    return ChatForm(_reader(settings, fields, roles, template), template, rule, settings.append_eod)


def special_ids_of(form: RowForm, settings: RowSettings, tokenizer: Tokenizer) -> dict[str, int | None]:
    """The id of each special token that a form uses; to be called before any work starts.

    Raises:
        TokenizerError: the vocabulary lacks one, or --special-token names one that the form does not use.
    """
    return resolve_special_tokens(form.special_names, dict(settings.special_tokens), tokenizer)


def _template(settings: RowSettings) -> ChatTemplate | None:
    name = settings.chat_template or ROW_FORMATS[settings.row_format].default_template
    if not name:
        return None
    template = TEMPLATES[name]
    return template if settings.system_text is None else replace(template, default_system=settings.system_text)


def _rule(settings: RowSettings, template: ChatTemplate | None) -> LabelRule:
    own = ROW_FORMATS[settings.row_format].default_rule
    return LABEL_RULES[settings.label_rule or own or (template.default_rule if template else "m0")]


def _reader(
    settings: RowSettings, fields: dict[str, str], roles: dict[str, Role], template: ChatTemplate
) -> ReadConversation:
    if settings.row_format == "conversations":
        return partial(read_conversation, fields=fields, roles=roles)
    if settings.row_format == "instruction":
        joiner = template.input_joiner if settings.separator is None else settings.separator
        return partial(read_instruction, fields=fields, joiner=joiner)
    if settings.row_format == "input-output":
        return partial(read_input_output, fields=fields)
    return partial(read_moss, fields=fields)
