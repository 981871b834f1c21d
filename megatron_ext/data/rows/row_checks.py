"""Settings of rows that are unknown or do not go together, refused before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from megatron_ext.data.rows.formats import ROW_FORMATS, RowFormat
from megatron_ext.data.rows.labels import LABEL_RULE_NAMES, LABEL_RULES
from megatron_ext.data.rows.published_templates import TEMPLATES
from megatron_ext.data.rows.settings import CUT, DROP, RowSettings
from megatron_ext.data.rows.spans import Role
from megatron_ext.errors import DataError


def check_rows(settings: RowSettings) -> None:
    """Refuse settings that are unknown, or that would change nothing.

    Raises:
        DataError: with the flag that is wrong.
    """
    row_format = ROW_FORMATS.get(settings.row_format)
    if row_format is None:
        raise _unknown("--row-format", settings.row_format, ROW_FORMATS)
    _check_keys(settings, row_format)
    _check_fields(settings, row_format)
    _check_template(settings, row_format)
    _check_rule(settings, row_format)
    _check_texts(settings, row_format)
    _check_roles(settings)
    _check_length(settings)
    _check_fim(settings, row_format)


def _check_keys(settings: RowSettings, row_format: RowFormat) -> None:
    if settings.json_keys and not row_format.default_keys:
        raise DataError(
            f"--json-keys {' '.join(settings.json_keys)} has no meaning with --row-format {row_format.name}",
            f"This format reads {', '.join(row_format.fields)}",
            "Name its columns with --field NAME=COLUMN",
        )
    twice = [key for key in settings.json_keys if settings.json_keys.count(key) > 1]
    if twice:
        raise DataError(f"--json-keys names {twice[0]!r} twice", fix="Name each key once")


def _check_fields(settings: RowSettings, row_format: RowFormat) -> None:
    for name, column in settings.fields:
        if row_format.default_keys:
            raise DataError(
                f"--field {name}={column} has no meaning with --row-format {row_format.name}",
                fix="Name the columns with --json-keys",
            )
        if name not in row_format.fields:
            raise _unknown(f"--field {name}={column}: the field", name, row_format.fields)
        if not column and name not in row_format.optional:
            raise DataError(f"--field {name}= names no column", fix="Name the column that holds it")


def _check_template(settings: RowSettings, row_format: RowFormat) -> None:
    name = settings.chat_template
    if name is None:
        return
    if name not in TEMPLATES:
        raise _unknown("--chat-template", name, TEMPLATES)
    if row_format.templates is not None and name not in row_format.templates:
        possible = ", ".join(row_format.templates)
        raise DataError(
            f"--chat-template {name} has no meaning with --row-format {row_format.name}",
            f"The templates of this format are {possible}" if possible else "Its rows are no conversations",
            "Leave --chat-template out, or use --row-format conversations, instruction or input-output",
        )


def _check_rule(settings: RowSettings, row_format: RowFormat) -> None:
    if settings.label_rule is None:
        return
    if settings.label_rule not in LABEL_RULES:
        raise _unknown("--label-rule", settings.label_rule, LABEL_RULES, (f"{a} ({b})" for a, b in LABEL_RULE_NAMES))
    if row_format.default_keys:
        raise DataError(
            f"--label-rule {settings.label_rule} has no meaning with --row-format {row_format.name}",
            "Texts are learned whole",
            "Leave it out, or use a --row-format with prompts and answers",
        )


def _check_texts(settings: RowSettings, row_format: RowFormat) -> None:
    has_template = settings.chat_template is not None or bool(row_format.default_template)
    given = {
        "separator": settings.separator is not None,
        "system_text": settings.system_text is not None,
        "roles": bool(settings.roles),
    }
    flags = {"separator": "--separator", "system_text": "--system-text", "roles": "--role"}
    for name, is_given in given.items():
        if is_given and name not in row_format.takes:
            raise DataError(f"{flags[name]} has no meaning with --row-format {row_format.name}", fix="Leave it out")
        if is_given and name != "separator" and not has_template:
            raise DataError(f"{flags[name]} needs a --chat-template", fix="Give one, or leave it out")
    name = settings.chat_template or row_format.default_template
    if settings.system_text and Role.SYSTEM not in TEMPLATES[name].messages:
        raise DataError(f"--system-text: chat template {name} has no place for a system message", fix="Leave it out")


def _check_roles(settings: RowSettings) -> None:
    possible = [role.value for role in (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL)]
    for name, role in settings.roles:
        if role not in possible:
            raise _unknown(f"--role {name}={role}: the role", role, possible)


def _check_length(settings: RowSettings) -> None:
    if settings.over_long not in (CUT, DROP):
        raise _unknown("--over-long", settings.over_long, (CUT, DROP))
    if settings.max_length is None:
        if settings.over_long == DROP:
            raise DataError("--over-long drop needs --max-length", fix="Give the most tokens a row may have")
    elif settings.max_length < 2:
        raise DataError(
            f"--max-length {settings.max_length} is too short", "A row needs a token to read and one to learn: 2"
        )


def _check_fim(settings: RowSettings, row_format: RowFormat) -> None:
    fim = settings.fim
    for flag, rate in (("--fim-rate", fim.rate), ("--fim-spm-rate", fim.spm_rate)):
        if not 0.0 <= rate <= 1.0:
            raise DataError(f"{flag} {rate} is not a share", "It lies between 0 and 1")
    if not -(1 << 63) <= fim.seed < 1 << 63:
        raise DataError(f"--seed {fim.seed} is too large", "It is a 64-bit whole number")
    if fim.rate > 0 and not row_format.default_keys:
        raise DataError(
            f"--fim-rate {fim.rate} has no meaning with --row-format {row_format.name}",
            "Fill-in-the-middle rearranges whole texts; a loss mask would not fit them any more",
            "Use --row-format text, or leave --fim-rate out",
        )


def _unknown(flag: str, value: str, possible: Iterable[str], told: Iterable[str] | None = None) -> DataError:
    names = list(possible)
    close = get_close_matches(value, names, 1)
    return DataError(
        f"{flag} {value} is not known",
        f"Known are {', '.join(names if told is None else told)}",
        f"Did you mean {close[0]}?" if close else "",
    )
