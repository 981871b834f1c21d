"""A document is shown as its text; marks only add to it, and no text can steer the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.store.document_text import BRACKETS, COLOURS, DocumentText, marks_for, printable
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.build import build_tokenizer
from megatron_ext.tokenizer.null import NullTokenizer
from tests.unit.data.small import TEXTS

NULL = NullTokenizer(1000)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.uint16)


def codes(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)


def test_learned_text_stands_in_brackets_and_the_end_of_document_is_visible():
    view = DocumentText(NULL, False, BRACKETS, eod_id=1000)
    assert view.render(ids(1, 2, 3, 1000, 4), codes(0, 0, 1, 1, 2)) == "1 2[[ 3]][[<eod>]]{{ 4}}"
    assert view.render(ids(1, 2, 1000), None) == "1 2<eod>"
    assert view.render(ids(), codes()) == ""


def test_colours_are_green_for_learned_and_grey_for_the_prompt():
    view = DocumentText(NULL, False, COLOURS)
    assert view.render(ids(1, 2), codes(0, 1)) == "\x1b[90m1\x1b[0m\x1b[32m 2\x1b[0m"


@pytest.mark.parametrize("seed", range(5))
def test_marks_only_add_to_the_text(seed: int, model_file: Path):
    tokenizer = build_tokenizer("SentencePieceTokenizer", model_file)
    random = np.random.default_rng(seed)
    for text in TEXTS[:4]:
        tokens = np.array(tokenizer.encode(text), np.uint16)
        mask = np.repeat(random.integers(0, 2, len(tokens) // 4 + 1), 4)[: len(tokens)].astype(np.uint8)
        shown = DocumentText(tokenizer, False, BRACKETS).render(tokens, mask)
        without = re.sub(r"\[\[|\]\]", "", shown)
        if "\N{REPLACEMENT CHARACTER}" not in without:  # a mask that cuts a character in two cannot show it
            assert without == printable(tokenizer.decode(tokens.tolist()))
        assert shown.count("[[") == shown.count("]]") > 0


def test_ids_are_shown_on_demand_and_where_there_is_no_tokenizer():
    assert DocumentText(NULL, True, BRACKETS).render(ids(1, 2, 3), codes(0, 1, 1)) == "1[[ 2 3]]\n1 [[2 3]]"
    assert DocumentText(None, False, BRACKETS).render(ids(1, 2), None) == "1 2"


def test_a_long_document_is_cut():
    assert DocumentText(NULL, False, BRACKETS, 2).render(ids(1, 2, 3, 4), None) == "1 2\n... and 2 tokens more"
    assert DocumentText(NULL, False, BRACKETS, 4).render(ids(1, 2, 3, 4), None) == "1 2 3 4"


def test_unknown_codes_are_shown_and_unknown_ids_refused():
    assert "<mask code 9>" in DocumentText(NULL, False, BRACKETS).render(ids(1), codes(9))
    with pytest.raises(TokenizerError, match="5000"):
        DocumentText(NULL, False, BRACKETS).render(ids(5000), None)


def test_control_characters_are_escaped_and_other_scripts_are_not():
    assert printable("a\x1b[31m\x00\x7f\x9b\r\u2028\u202e\ud800") == "a\\x1b[31m\\x00\\x7f\\x9b\\r\\u2028\\u202e\\ud800"
    plain = "天地\u3000玄黄 🙂👨\u200d👩 café\n\tمرحبا"
    assert printable(plain) == plain


def test_colour_is_for_terminals_that_want_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert marks_for(Terminal()) is COLOURS
    assert marks_for(io.StringIO()) is BRACKETS
    monkeypatch.setenv("NO_COLOR", "1")
    assert marks_for(Terminal()) is BRACKETS
