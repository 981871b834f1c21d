"""Context and completion, and Yuan's lines: what is read, what is learned, where the row ends."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.data.rows.settings import RowSettings
from tests.unit.data.rows.word_tokenizer import WordTokenizer, documents, encode, one_row, why_refused

COMPLETION = RowSettings("completion")
YUAN = RowSettings("yuan")


def test_the_golden_row_of_context_and_completion():
    record = {"context": "北京 is", "completion": "a city"}
    assert one_row(WordTokenizer(bos="<s>"), COMPLETION, record) == [
        ("<s>", 1),
        *[(word, 0) for word in ("北京", " ", "is")],
        *[(word, 1) for word in ("a", " ", "city")],
    ]


def test_a_tokenizer_without_bos_gives_none():
    assert one_row(WordTokenizer(), COMPLETION, {"context": "a", "completion": "b"}) == [("a", 0), ("b", 1)]


def test_separator_and_end_are_settings():
    rows = RowSettings("completion", separator="=>", append_eod=True)
    row = one_row(WordTokenizer(), rows, {"context": "a", "completion": "b"})
    assert row == [("a", 0), ("=", 0), (">", 0), ("b", 1), ("</s>", 1)]
    assert one_row(WordTokenizer(), rows, {"completion": "b"}) == [("b", 1), ("</s>", 1)]


@pytest.mark.parametrize("context", [{}, {"context": ""}, {"context": None}])
def test_the_context_is_optional(context: dict[str, Any]):
    assert one_row(WordTokenizer(), COMPLETION, {"completion": "b", **context}) == [("b", 1)]


def test_both_empty_is_empty_and_no_completion_teaches_nothing():
    block = encode(WordTokenizer(bos="<s>"), COMPLETION, {"context": "", "completion": ""})
    assert (block.documents[0].num_empty, block.bad) == (1, [])
    assert why_refused(WordTokenizer(), COMPLETION, {"context": "a", "completion": ""})[0] == "nothing to learn"
    assert why_refused(WordTokenizer(), COMPLETION, {"context": "a"}) == ("missing key", "no key 'completion'")
    assert why_refused(WordTokenizer(), COMPLETION, "a line")[0] == "not an object"


def test_all_labels_need_no_mask():
    tokenizer = WordTokenizer()
    block = encode(tokenizer, RowSettings("completion", label_rule="all"), {"context": "a", "completion": "b"})
    assert block.documents[0].mask_bytes is None
    assert documents(tokenizer, block) == [[("a", 1), ("b", 1)]]


def test_the_golden_row_of_a_yuan_line():
    row = one_row(WordTokenizer("<sep>"), YUAN, "<n> 一加一是几？<sep>Two.<n>Done ")
    assert row == [
        *[("一加一是几", 0), ("？", 0), ("<sep>", 0)],
        *[(word, 1) for word in ("Two", ".", "\n", "Done", "</s>")],
    ]


def test_a_yuan_line_without_separator_is_learned_whole_and_may_stand_in_a_column():
    expected = [("a", 1), ("\n", 1), ("b", 1), ("</s>", 1)]
    assert one_row(WordTokenizer("<sep>"), YUAN, "a<n>b") == expected
    assert (
        one_row(WordTokenizer("<sep>"), RowSettings("yuan", fields=(("text", "line"),)), {"line": "a<n>b"}) == expected
    )


def test_the_first_of_several_yuan_separators_counts():
    row = one_row(WordTokenizer("<sep>"), YUAN, "a[SEP]b<sep>c")
    assert row == [("a", 0), ("<sep>", 0), ("b", 1), ("<sep>", 1), ("c", 1), ("</s>", 1)]


def test_yuan_lines_with_nothing_in_them():
    block = encode(WordTokenizer("<sep>"), YUAN, "<n><n>", "", "  ")
    assert (block.documents[0].num_empty, block.bad) == (3, [])
    assert why_refused(WordTokenizer("<sep>"), YUAN, "a<sep> ") == ("nothing to learn", "nothing stands after <sep>")
    assert why_refused(WordTokenizer("<sep>"), YUAN, {"text": 1})[0] == "wrong type"
