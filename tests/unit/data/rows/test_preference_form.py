"""A better and a worse answer give two outputs that stay in step."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.rows.settings import RowSettings
from tests.unit.data.rows.word_tokenizer import WordTokenizer, documents, encode, one_row, why_refused

PLAIN = RowSettings("preference")
CHAT = RowSettings("preference", chat_template="xverse")
RECORD = {"prompt": "几点", "chosen": "Noon", "rejected": "No idea"}


def test_the_golden_pair_without_template():
    assert one_row(WordTokenizer(), PLAIN, RECORD, 0) == [("几点", 0), ("Noon", 1), ("</s>", 1)]
    assert one_row(WordTokenizer(), PLAIN, RECORD, 1) == [("几点", 0), ("No", 1), (" ", 1), ("idea", 1), ("</s>", 1)]


def test_the_golden_pair_with_a_template_learns_the_last_answer_alone():
    record = {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "gpt", "value": "b"},
            {"from": "human", "value": "c"},
        ],
        "chosen": "d",
        "rejected": {"from": "gpt", "value": "e"},
    }
    question = ["Human", ":", " ", "?", "\n\n", "Assistant", ":", " "]
    prompt = [
        *[(word.replace("?", "a"), 0) for word in question],
        ("b", 0),
        ("</s>", 0),
        *[(word.replace("?", "c"), 0) for word in question],
    ]
    assert one_row(WordTokenizer(), CHAT, record, 0) == [*prompt, ("d", 1), ("</s>", 1)]
    assert one_row(WordTokenizer(), CHAT, record, 1) == [*prompt, ("e", 1), ("</s>", 1)]


def test_a_prompt_text_is_a_users_message_to_a_template():
    assert one_row(WordTokenizer(), CHAT, RECORD)[:4] == [("Human", 0), (":", 0), (" ", 0), ("几点", 0)]


def test_whole_texts_without_prompt():
    rows = RowSettings("preference", fields=(("prompt", ""),), label_rule="all")
    assert one_row(WordTokenizer(), rows, {"chosen": "a", "rejected": "b"}, 1) == [("b", 1), ("</s>", 1)]


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({**RECORD, "rejected": ""}, "nothing to learn", "'rejected' is empty"),
        ({**RECORD, "rejected": "Noon"}, "nothing to learn", "are the same"),
        ({"prompt": "a", "chosen": "b"}, "missing key", "'rejected'"),
        ({**RECORD, "chosen": ["b"]}, "wrong type", "'chosen' holds a list"),
        ({**RECORD, "prompt": ["b"]}, "wrong type", "'prompt' holds a list"),
        ("line", "not an object", "plain text"),
    ],
)
def test_odd_pairs_are_refused_whole(record: Any, reason: str, detail: str):
    for rows in (PLAIN, CHAT):
        found, told = why_refused(WordTokenizer(), rows, record)
        assert found == reason
        assert detail in told


def test_pairs_stay_in_step_when_one_answer_is_too_long():
    tokenizer = WordTokenizer()
    rows = RowSettings("preference", max_length=3, over_long="drop")
    block = encode(tokenizer, rows, RECORD, {**RECORD, "rejected": "Never"}, {"prompt": 1})
    assert [documents(tokenizer, block, output) for output in (0, 1)] == [
        [[("几点", 0), ("Noon", 1), ("</s>", 1)]],
        [[("几点", 0), ("Never", 1), ("</s>", 1)]],
    ]
    assert [(bad.line, bad.reason) for bad in block.bad] == [(1, "too long"), (3, "missing key")]
