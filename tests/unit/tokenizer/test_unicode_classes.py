"""The classes are those that the libraries' regular expressions see, code point for code point."""

from __future__ import annotations

import numpy as np
import pytest
import tiktoken
from tokenizers import Regex, pre_tokenizers

from megatron_ext.tokenizer import unicode_classes
from megatron_ext.tokenizer.unicode_classes import UNCERTAIN, character_classes

MARKS_AND = {"UPPER_OR_MARK": r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", "LOWER_OR_MARK": r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"}
CLASSES = {"LETTER": r"\p{L}", "NUMBER": r"\p{N}", "SPACE": r"\s", "LINE_END": r"[\r\n]", **MARKS_AND}
CERTAIN = [code for code in np.flatnonzero(character_classes() != UNCERTAIN).tolist() if not 0xD800 <= code < 0xE000]
TEXT = "".join(map(chr, CERTAIN))


def wanted(name: str) -> list[int]:
    return np.flatnonzero(character_classes() & getattr(unicode_classes, name)).tolist()


def test_most_assigned_characters_are_certain():
    assert len(CERTAIN) > 140_000
    assert not set(wanted("UNCERTAIN")) & set(range(0x370))


@pytest.mark.parametrize("name", CLASSES)
def test_tiktoken_sees_the_same_classes(name: str):
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("x", pat_str=CLASSES[name], mergeable_ranks=single_bytes, special_tokens={})
    assert [ord(c) for c in bytes(encoding.encode_ordinary(TEXT)).decode()] == wanted(name)


@pytest.mark.parametrize("name", CLASSES)
def test_tokenizers_sees_the_same_classes(name: str):
    chosen = [code for code in CERTAIN if code < 0x3400 or (code > 0x9FF0 and not 0xAC20 <= code < 0xD7A0)]
    chosen = [
        code for code in chosen if not 0xE000 <= code < 0xF900 and not 0x17000 <= code < 0x18D00 and code < 0x20000
    ]
    split = pre_tokenizers.Split(Regex(CLASSES[name] + "+"), "removed", invert=True)
    found = {ord(c) for piece, _ in split.pre_tokenize_str("".join(map(chr, chosen))) for c in piece}
    assert found == set(wanted(name)) & set(chosen)


def test_the_table_is_shared_and_cannot_be_written():
    assert character_classes() is character_classes()
    with pytest.raises(ValueError):
        character_classes()[0] = 1
