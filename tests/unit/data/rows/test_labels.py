"""Each label rule on one common conversation, so that the differences can be seen side by side."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.rows import labels
from megatron_ext.data.rows.labels import LABEL_RULE_NAMES, LABEL_RULES
from megatron_ext.data.rows.spans import BOS, EOS, Part, Role, Span
from megatron_ext.data.store.loss_mask import CODES

USER, ASSISTANT, TOOL, SYSTEM = Role.USER, Role.ASSISTANT, Role.TOOL, Role.SYSTEM
# every part that a rule can look at, once for each role that matters
COMMON = [
    Span(BOS, Part.BOS, SYSTEM, 0, special=True),
    Span("Be kind", Part.TEXT, SYSTEM, 0),
    Span("<u>", Part.MARK, USER, 1, special=True),
    Span("user", Part.NAME, USER, 1),
    Span("\n", Part.BREAK, USER, 1),
    Span("hi", Part.TEXT, USER, 1),
    Span("<e>", Part.END, USER, 1, special=True),
    Span("\n", Part.GAP, USER, 1),
    Span("<a>", Part.MARK, ASSISTANT, 2, special=True),
    Span("assistant", Part.NAME, ASSISTANT, 2),
    Span("\n", Part.BREAK, ASSISTANT, 2),
    Span("look(1)", Part.TEXT, ASSISTANT, 2),
    Span("<e>", Part.END, ASSISTANT, 2, special=True),
    Span("\n", Part.GAP, ASSISTANT, 2),
    Span("<t>", Part.MARK, TOOL, 3, special=True),
    Span("found", Part.TEXT, TOOL, 3),
    Span("<e>", Part.END, TOOL, 3, special=True),
    Span("<a>", Part.MARK, ASSISTANT, 4, special=True),
    Span("yes", Part.TEXT, ASSISTANT, 4),
    Span("<e>", Part.END, ASSISTANT, 4, special=True),
    Span("<u>", Part.MARK, USER, 5, special=True),
    Span("bye", Part.TEXT, USER, 5),
    Span("<a>", Part.MARK, ASSISTANT, 6, special=True),
    Span("bye", Part.TEXT, ASSISTANT, 6),
    Span(EOS, Part.EOS, ASSISTANT, 6, special=True),
]

# columns: bos, system text | user: mark name break text end gap | assistant: the same six | tool: mark text end |
# assistant: mark text end | user: mark text | assistant: mark text eos
EXPECTED = {
    "m0": "11 111111 111111 111 111 11 111",
    "m1": "10 000000 111111 000 111 00 111",
    "m2": "00 000000 000110 000 011 00 011",
    "m3": "00 000000 000000 000 000 00 011",
    "m4": "00 000000 000110 000 011 20 011",
    "m5": "00 100000 111110 000 111 10 111",
    "m6": "00 100011 100111 101 111 10 111",
    "m7": "10 111111 111111 101 111 11 111",
    "m8": "00 000000 011111 111 111 11 111",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_rule_on_the_common_conversation(name: str):
    assert "".join(map(str, LABEL_RULES[name](COMMON))) == EXPECTED[name].replace(" ", "")


def test_rules_have_a_short_and_a_speaking_name():
    assert [short for short, _ in LABEL_RULE_NAMES] == [f"m{number}" for number in range(9)]
    for short, long in LABEL_RULE_NAMES:
        assert LABEL_RULES[short] is LABEL_RULES[long]
    rules = {rule for name, rule in inspect.getmembers(labels, inspect.isfunction) if name.startswith("label_")}
    assert rules == set(LABEL_RULES.values())


def test_turn_ends_are_learned_only_after_an_answer():
    """The first user mark follows no answer, whether or not a system text stands before it."""
    codes = labels.label_answers_and_turn_ends(COMMON)
    assert [codes[place] for place, span in enumerate(COMMON) if span.text == "<u>"] == [0, 2]


def test_after_separator_learns_a_row_without_separator_whole():
    assert labels.label_after_separator([Span("a", Part.TEXT, ASSISTANT), Span(EOS, Part.EOS, ASSISTANT)]) == [1, 1]


SPANS = st.lists(
    st.builds(Span, st.just("x"), st.sampled_from(Part), st.sampled_from(Role), st.integers(0, 5)), max_size=12
)


@given(SPANS, st.sampled_from(sorted(LABEL_RULES)))
def test_every_rule_gives_each_span_one_known_code(spans: list[Span], name: str):
    codes = LABEL_RULES[name](spans)
    assert len(codes) == len(spans)
    assert set(codes) <= set(CODES)
