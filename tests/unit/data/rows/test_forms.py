"""Every row format makes a form; settings reach the form they are meant for."""

from __future__ import annotations

import pytest

from megatron_ext.data.rows.formats import ROW_FORMATS
from megatron_ext.data.rows.forms import make_row_form, special_ids_of
from megatron_ext.data.rows.settings import FimSettings, RowSettings
from megatron_ext.errors import DataError, TokenizerError
from tests.unit.data.rows.word_tokenizer import WordTokenizer, one_row

OUTPUTS = {"text": ("text",), "content": ("content",), "data": ("data",), "preference": ("chosen", "rejected")}


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_every_format_makes_a_form_with_its_outputs(name: str):
    form = make_row_form(RowSettings(name))
    assert form.keys == OUTPUTS.get(name, ("text",))
    assert form.has_mask is (name not in ("text", "content", "data"))
    assert "eos" in form.special_names


def test_keys_of_texts_are_a_setting():
    assert make_row_form(RowSettings("content", json_keys=("a", "b"))).keys == ("a", "b")


def test_settings_are_checked():
    with pytest.raises(DataError, match="--row-format poems"):
        make_row_form(RowSettings("poems"))


def test_fields_roles_template_rule_and_system_text_reach_a_conversation():
    rows = RowSettings(
        "conversations",
        fields=(("conversations", "talk"), ("from", "who"), ("value", "what")),
        roles=(("Kunde", "user"), ("assistant", "system"), ("Bot", "assistant")),
        chat_template="xverse",
        label_rule="all",
        system_text="S",
    )
    record = {"talk": [{"who": "kunde", "what": "a"}, {"who": "BOT", "what": "b"}]}
    row = one_row(WordTokenizer(), rows, record)
    assert [word for word, _ in row] == ["S", "Human", ":", " ", "a", "\n\n", "Assistant", ":", " ", "b", "</s>"]
    assert {code for _, code in row} == {1}


def test_an_empty_system_text_takes_a_templates_own_away():
    record = {"conversations": [{"from": "user", "value": "a"}, {"from": "gpt", "value": "b"}]}
    tokenizer = WordTokenizer("<|im_start|>", "<|im_end|>")
    row = one_row(tokenizer, RowSettings("conversations", chat_template="qwen", system_text=""), record)
    assert row[1][0] == "user"


def test_special_ids_are_looked_up_as_the_flag_says():
    rows = RowSettings("yuan", special_tokens=(("<sep>", "<cut>"),))
    assert special_ids_of(make_row_form(rows), rows, WordTokenizer("<cut>")) == {"<sep>": 1, "eos": 0}
    with pytest.raises(TokenizerError, match="'<sep>'"):
        special_ids_of(make_row_form(RowSettings("yuan")), RowSettings("yuan"), WordTokenizer("<cut>"))


def test_a_rate_of_zero_needs_no_special_tokens():
    assert make_row_form(RowSettings("text", fim=FimSettings(rate=0.0))).special_names == ("eos",)
