"""Spans become segments: what may be encoded together, is; what a label rule parts, is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.rows.spans import Part, Role, Segment, Span, segments_of


def text(characters: str, joined: bool = False) -> Span:
    return Span(characters, Part.TEXT, Role.USER, joined=joined)


MARK = Span("<m>", Part.MARK, Role.USER, special=True)


def test_joined_spans_of_equal_code_are_one_segment():
    assert segments_of([text("a"), text("b", joined=True), text("c")], [1, 1, 1]) == [Segment("ab", 1), Segment("c", 1)]


def test_a_rule_parts_joined_spans():
    assert segments_of([text("a"), text("b", joined=True)], [0, 1]) == [Segment("a", 0), Segment("b", 1)]


def test_nothing_joins_across_a_special_token_or_across_an_empty_text_that_stood_alone():
    assert segments_of([text("a"), MARK, text("b", joined=True)], [1, 1, 1]) == [
        Segment("a", 1),
        Segment("<m>", 1, True),
        Segment("b", 1),
    ]
    assert segments_of([text("a"), text(""), text("b", joined=True)], [1, 1, 1]) == [Segment("a", 1), Segment("b", 1)]
    assert segments_of([text("a"), text("", True), text("b", True)], [1, 1, 1]) == [Segment("ab", 1)]


def test_what_the_assistant_asks_of_a_tool_is_the_assistants():
    assert [role.writer for role in (Role.THOUGHTS, Role.COMMANDS, Role.TOOL)] == [
        Role.ASSISTANT,
        Role.ASSISTANT,
        Role.TOOL,
    ]


SPANS = st.lists(st.tuples(st.builds(text, st.text(max_size=3), st.booleans()) | st.just(MARK), st.integers(0, 2)))


@given(SPANS)
def test_segments_hold_the_same_characters_with_the_same_codes(pairs: list[tuple[Span, int]]):
    segments = segments_of([span for span, _ in pairs], [code for _, code in pairs])
    assert [(c, s.learn) for s in segments for c in s.text] == [(c, code) for span, code in pairs for c in span.text]
    assert all(segment.text for segment in segments)
