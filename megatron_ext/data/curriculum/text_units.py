"""What text is counted in: words where scripts put spaces between them, characters where they do not; and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

# Scripts without spaces between words: Thai to Lao, Burmese, Khmer, kana, Chinese characters with their extensions.
_UNSPACED = (
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
_LETTER = rf"[^\W_{_UNSPACED}]"
_UNIT = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['’\-]{_LETTER}+)*")
_IS_UNSPACED = re.compile(rf"[{_UNSPACED}]")
# A full stop inside 3.14 or example.org ends no sentence; the Chinese marks need no space behind them.
_SENTENCE_END = re.compile(r"[。！？…｡]+|[.!?]+(?=[\s\"'”’)\]]|$)|\n\s*\n")


def units(text: str) -> list[str]:
    """The words of a text as they stand, and each character of scripts without spaces, in order.

    Words are letters and digits with single apostrophes and hyphens inside; punctuation is left out.
    """
    return _UNIT.findall(text)


def is_character(unit: str) -> bool:
    """Whether a unit is a character of a script without spaces, and no word."""
    return _IS_UNSPACED.match(unit) is not None


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text that hold a unit.

    A sentence ends at 。！？…, at . ! ? before white space or a closing quote or bracket, and at an empty line.
    """
    for sentence in _SENTENCE_END.split(text):
        if _UNIT.search(sentence):
            yield sentence


def is_uncommon_character(character: str) -> bool:
    """Whether a character is outside the standards' lists of those in common use.

    Simplified ones are looked up in level 1 of GB 2312-1980 (3755 characters), those which that standard lacks in
    level 1 of Big5 (5401 characters).
    """
    common, known = _common_characters()
    return character not in common and (character in known or character not in _common_in_big5())


@cache
def _common_characters() -> tuple[frozenset[str], frozenset[str]]:
    """Level 1 of GB 2312, rows 16 to 55, and all that it has, rows 1 to 87."""
    rows = {row: _decoded("gb2312", row + 0xA0, range(0xA1, 0xFF)) for row in range(1, 88)}
    level_1 = {character for row in range(16, 56) for character in rows[row]}
    return frozenset(level_1), frozenset(character for row in rows.values() for character in row)


@cache
def _common_in_big5() -> frozenset[str]:
    """Level 1 of Big5, A440 to C67E."""
    trails = [*range(0x40, 0x7F), *range(0xA1, 0xFF)]
    return frozenset(
        character
        for lead in range(0xA4, 0xC7)
        for character in _decoded("big5", lead, [trail for trail in trails if lead < 0xC6 or trail <= 0x7E])
    )


def _decoded(codec: str, lead: int, trails: range | list[int]) -> str:
    return b"".join(bytes((lead, trail)) for trail in trails).decode(codec, errors="ignore")
