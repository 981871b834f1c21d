"""What a run wants to have made of its rows: plain frozen values, which a worker process can be sent."""

from __future__ import annotations

from dataclasses import dataclass, field

CUT, DROP = "cut", "drop"


@dataclass(frozen=True)
class FimSettings:
    """Fill-in-the-middle (--fim-rate, --fim-spm-rate, --seed).

    Attributes:
        rate: share of the documents that are rearranged, in [0, 1]; 0 switches it off.
        spm_rate: share of the rearranged documents whose suffix comes first, in [0, 1].
        seed: chooses the draw; together with a document's text it decides everything about that document.
        prefix_token: name of the special token before the prefix.
        middle_token: name of the special token before the middle.
        suffix_token: name of the special token before the suffix.
    """

    rate: float = 0.0
    spm_rate: float = 0.5
    seed: int = 1234
    prefix_token: str = "<fim_prefix>"
    middle_token: str = "<fim_middle>"
    suffix_token: str = "<fim_suffix>"


@dataclass(frozen=True)
class RowSettings:
    """How one record becomes tokens.

    Attributes:
        row_format: a name of `forms.ROW_FORMATS` (--row-format).
        json_keys: columns whose texts become documents, one output each (--json-keys); empty: the format's own.
        fields: (name, column) pairs for records whose columns have other names (--field NAME=COLUMN).
        chat_template: a name of `published_templates.TEMPLATES` (--chat-template); None: the format's own.
        label_rule: a name of `labels.LABEL_RULES` (--label-rule); None: the template's or the format's own.
        special_tokens: (name, piece or id) pairs for vocabularies with other names (--special-token NAME=PIECE_OR_ID).
        roles: (name in the data, role) pairs beyond the usual names (--role NAME=ROLE).
        separator: text between context and completion, or between instruction and input (--separator); None: the
            format's or the template's own.
        system_text: system message of conversations without one (--system-text); None: the template's own.
        append_eod: end each document with the end-of-document id, unless its template already does.
        max_length: most tokens of a row, or None (--max-length).
        over_long: "cut": longer rows are cut and their last token becomes the end-of-document id; "drop": they are
            refused (--over-long).
        fim: fill-in-the-middle.
    """

    row_format: str = "text"
    json_keys: tuple[str, ...] = ()
    fields: tuple[tuple[str, str], ...] = ()
    chat_template: str | None = None
    label_rule: str | None = None
    special_tokens: tuple[tuple[str, str], ...] = ()
    roles: tuple[tuple[str, str], ...] = ()
    separator: str | None = None
    system_text: str | None = None
    append_eod: bool = False
    max_length: int | None = None
    over_long: str = CUT
    fim: FimSettings = field(default_factory=FimSettings)


@dataclass(frozen=True)
class EncodeSettings:
    """What an encoder needs to know beside its tokenizer.

    Attributes:
        rows: how records become tokens.
        dtype: numpy name of the stored token type.
    """

    rows: RowSettings
    dtype: str
