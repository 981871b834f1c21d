"""Special tokens are found before work starts, or the flag that helps is named."""

from __future__ import annotations

import pytest

from megatron_ext.data.rows.special_tokens import resolve_special_tokens
from megatron_ext.errors import TokenizerError
from tests.unit.data.rows.word_tokenizer import WordTokenizer

TOKENIZER = WordTokenizer("<u>", "<a>", "7", bos="<s>")


def test_names_are_found_in_the_vocabulary_and_bos_and_eos_at_the_tokenizer():
    found = resolve_special_tokens(["<a>", "eos", "<u>", "bos", "<a>"], {}, TOKENIZER)
    assert found == {"<a>": 2, "eos": 0, "<u>": 1, "bos": 4}


def test_a_tokenizer_without_bos_has_none():
    assert resolve_special_tokens(["bos"], {}, WordTokenizer()) == {"bos": None}


def test_a_name_can_stand_for_a_piece_or_an_id():
    names = ["<x>", "<y>", "eos", "bos"]
    mapping = {"<x>": "<a>", "<y>": "195", "eos": "<u>", "bos": "7"}
    found = resolve_special_tokens(names, mapping, TOKENIZER)
    assert found == {"<x>": 2, "<y>": 195, "eos": 1, "bos": 3}  # a piece named 7 goes before the id 7


@pytest.mark.parametrize(
    ("names", "mapping", "message"),
    [
        (["<missing>"], {}, r"no token '<missing>'.*--special-token <missing>=PIECE_OR_ID"),
        (["<u>"], {"<u>": "nothing"}, "no token 'nothing'"),
        (["<u>"], {"<u>": "1000"}, "--special-token <u>=1000 is not an id.*0 to 999"),
        (["<u>"], {"<other>": "<a>"}, "--special-token <other>=<a> changes nothing.*<u>"),
        ([], {"<other>": "<a>"}, "none"),
    ],
)
def test_what_is_missing_or_useless_is_refused(names: list[str], mapping: dict[str, str], message: str):
    with pytest.raises(TokenizerError, match=message):
        resolve_special_tokens(names, mapping, TOKENIZER)
