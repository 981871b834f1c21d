"""Golden token and label lists, written by hand from what each template's makers publish, with their usual rule."""

from __future__ import annotations

import pytest

from megatron_ext.data.rows.labels import LABEL_RULES
from megatron_ext.data.rows.published_templates import TEMPLATES
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.rows.spans import BOS, EOS
from tests.unit.data.rows.word_tokenizer import Tokens, WordTokenizer, one_row

CONVERSATION = {
    "conversations": [
        {"from": "human", "value": "你好"},
        {"from": "gpt", "value": "很好"},
        {"from": "human", "value": "Thanks friend"},
        {"from": "gpt", "value": "Bye"},
    ]
}


def learned(*words: str) -> Tokens:
    return [(word, 1) for word in words]


def ignored(*words: str) -> Tokens:
    return [(word, 0) for word in words]


def tokenizer_for(template: str) -> WordTokenizer:
    return WordTokenizer(*(name for name in TEMPLATES[template].special_names if name not in (BOS, EOS)))


THANKS = ("Thanks", " ", "friend")

GOLDEN: dict[str, Tokens] = {
    "chatml": [
        *ignored("<|im_start|>", "user", "\n", "你好", "<|im_end|>", "\n"),
        *ignored("<|im_start|>", "assistant", "\n"),
        *learned("很好", "<|im_end|>"),
        *ignored("\n"),
        *ignored("<|im_start|>", "user", "\n", *THANKS, "<|im_end|>", "\n"),
        *ignored("<|im_start|>", "assistant", "\n"),
        *learned("Bye", "<|im_end|>"),
        *ignored("\n"),
    ],
    "qwen": [
        *learned("<|im_start|>"),
        *ignored("system", "\n", "You", " ", "are", " ", "a", " ", "helpful", " ", "assistant", "."),
        *learned("<|im_end|>", "\n"),
        *learned("<|im_start|>"),
        *ignored("user", "\n", "你好"),
        *learned("<|im_end|>", "\n"),
        *learned("<|im_start|>"),
        *ignored("assistant", "\n"),
        *learned("很好", "<|im_end|>", "\n"),
        *learned("<|im_start|>"),
        *ignored("user", "\n", *THANKS),
        *learned("<|im_end|>", "\n"),
        *learned("<|im_start|>"),
        *ignored("assistant", "\n"),
        *learned("Bye", "<|im_end|>", "\n"),
    ],
    "yuren": [
        *ignored("\n", "<|im_start|>", "user", "\n", "你好", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
        *learned("很好", "<|im_end|>", "</s>"),
        *ignored("\n", "<|im_start|>", "user", "\n", *THANKS, "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
        *learned("Bye", "<|im_end|>", "</s>"),
    ],
    "belle": [
        *ignored("Human", ":", " \n", "你好", "\n\n", "Assistant", ":", " \n"),
        *learned("很好", "</s>"),
        *ignored("Human", ":", " \n", *THANKS, "\n\n", "Assistant", ":", " \n"),
        *learned("Bye", "</s>"),
    ],
    "alpaca": [
        *ignored("#", "#", "#", " ", "Instruction", ":", "\n", "你好", "\n\n"),
        *ignored("#", "#", "#", " ", "Response", ":", "\n"),
        *learned("很好", "</s>"),
        *ignored("#", "#", "#", " ", "Instruction", ":", "\n", *THANKS, "\n\n"),
        *ignored("#", "#", "#", " ", "Response", ":", "\n"),
        *learned("Bye", "</s>"),
    ],
    "baichuan": [
        *ignored("<reserved_102>", "你好", "<reserved_103>"),
        *learned("很好", "</s>"),
        *ignored("<reserved_102>", *THANKS, "<reserved_103>"),
        *learned("Bye", "</s>"),
    ],
    "baichuan2": [
        *ignored("<reserved_106>", "你好", "<reserved_107>"),
        *learned("很好"),
        ("<reserved_106>", 2),
        *ignored(*THANKS, "<reserved_107>"),
        *learned("Bye", "</s>"),
    ],
    "telechat": [
        *learned("<_user>"),
        *ignored("你好"),
        *learned("<_bot>", "很好", "<_end>"),
        *learned("<_user>"),
        *ignored(*THANKS),
        *learned("<_bot>", "Bye", "<_end>"),
    ],
    "telechat-52b": [
        *ignored("<", "_user", ">", "你好", "<", "_bot", ">", "很好", "<", "_end", ">"),
        *ignored("<", "_user", ">", *THANKS, "<", "_bot", ">"),
        *learned("Bye", "</s>"),
    ],
    "xverse": [
        *ignored("Human", ":", " ", "你好", "\n\n", "Assistant", ":", " "),
        *learned("很好", "</s>"),
        *ignored("Human", ":", " ", *THANKS, "\n\n", "Assistant", ":", " "),
        *learned("Bye", "</s>"),
    ],
    "moss": [
        *learned("<", "|", "Human", "|", ">", ":", " ", "你好", "<eoh>", "\n"),
        *learned("<", "|", "MOSS", "|", ">", ":", " ", "很好", "<eom>", "\n"),
        *learned("<", "|", "Human", "|", ">", ":", " ", *THANKS, "<eoh>", "\n"),
        *learned("<", "|", "MOSS", "|", ">", ":", " ", "Bye", "<eom>", "\n"),
    ],
}


def test_every_template_has_a_golden_row():
    assert set(GOLDEN) == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_turns_with_the_usual_rule(name: str):
    rows = RowSettings("conversations", chat_template=name)
    assert one_row(tokenizer_for(name), rows, CONVERSATION) == GOLDEN[name]


SYSTEM_FRONT = {
    "chatml": ignored("<|im_start|>", "system", "\n", "Be", " ", "kind", "<|im_end|>", "\n"),
    "qwen": [
        *learned("<|im_start|>"),
        *ignored("system", "\n", "Be", " ", "kind"),
        *learned("<|im_end|>", "\n"),
    ],
    "yuren": ignored("<|im_start|>", "system", "\n", "Be", " ", "kind", "<|im_end|>"),
    "alpaca": ignored("Be", " ", "kind", "\n\n"),
    "baichuan": ignored("Be", " ", "kind"),
    "baichuan2": ignored("Be", " ", "kind"),
    "xverse": ignored("Be", " ", "kind"),
    "moss": ignored("Be", " ", "kind"),
}


@pytest.mark.parametrize("name", SYSTEM_FRONT)
def test_a_system_message_stands_in_front(name: str):
    rows = RowSettings("conversations", chat_template=name)
    record = {"conversations": [{"from": "system", "value": "Be kind"}, *CONVERSATION["conversations"]]}
    own = GOLDEN[name][15:] if name == "qwen" else GOLDEN[name]
    assert one_row(tokenizer_for(name), rows, record) == SYSTEM_FRONT[name] + own


def test_what_is_encoded_together_shows_where_a_text_begins_with_a_line_break():
    """Yuren encodes role name, line break and question together, but the answer alone; Qwen encodes each alone."""
    record = {"conversations": [{"from": "user", "value": "\na"}, {"from": "assistant", "value": "\nb"}]}
    yuren = [
        word for word, _ in one_row(tokenizer_for("yuren"), RowSettings("conversations", chat_template="yuren"), record)
    ]
    assert yuren == [
        *("\n", "<|im_start|>", "user", "\n\n", "a", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
        *("\n", "b", "<|im_end|>", "</s>"),
    ]
    chatml = [word for word, _ in one_row(tokenizer_for("chatml"), RowSettings("conversations"), record)]
    assert chatml[:6] == ["<|im_start|>", "user", "\n", "\n", "a", "<|im_end|>"]


def test_every_template_names_its_source_and_a_rule():
    for template in TEMPLATES.values():
        assert "/" in template.source
        assert template.default_rule in LABEL_RULES
