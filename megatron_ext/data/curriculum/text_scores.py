"""Scores that need the text of a document: compression, lexical diversity and readability; higher is harder.

Each is a pure function of the text, works for Chinese, English and mixtures, and gives 0 for a text without units.
"""

from __future__ import annotations

import zlib

import numpy as np

from megatron_ext.data.curriculum.text_units import is_character, is_uncommon_character, sentences, units

COMPRESSION_LEVEL = 6
"""Fixed, so that equal texts give equal scores."""
DIVERSITY_WINDOW = 50
"""Units in a window of the moving average."""
LONG_WORD_LETTERS = 6
"""A word with more letters is a long one."""
CHARACTERS_PER_WORD = 1.5
"""How many characters of a script without spaces stand for a word: running Chinese text has words of one and two."""


def compression(text: str) -> float:
    """Compressed size / size of the UTF-8 bytes with zlib at level 6; what repeats itself is easy.

    A few bytes do not become fewer: short texts score about 1 and more. Source: the compression ratio was among the
    best difficulty metrics in arXiv 2506.11300.
    """
    content = text.encode("utf-8", errors="replace")
    return len(zlib.compress(content, COMPRESSION_LEVEL)) / len(content) if content else 0.0


def diversity(text: str) -> float:
    """Moving-average type-token ratio over windows of 50 units, in (0, 1]: the mean share of different units.

    It does not depend on the length of texts of at least 50 units; a shorter text is one window. Words count without
    regard to case. Source: Covington and McFall, Cutting the Gordian knot: the moving-average type-token ratio (MATTR),
    Journal of Quantitative Linguistics 17(2), 2010.
    """
    numbers: dict[str, int] = {}
    previous: list[int] = []  # place of the same unit before, -1 for none
    for place, unit in enumerate(units(text)):
        key = unit.casefold()
        previous.append(numbers.get(key, -1))
        numbers[key] = place
    count = len(previous)
    if not count:
        return 0.0
    window = min(DIVERSITY_WINDOW, count)
    # A unit is the first of its kind in all windows that reach it and begin behind its predecessor.
    places = np.arange(count)
    begins = np.maximum(np.maximum(np.array(previous) + 1, places - window + 1), 0)
    windows = np.maximum(np.minimum(places, count - window) - begins + 1, 0)
    return int(windows.sum()) / (window * (count - window + 1))


def readability(text: str) -> float:
    """LIX = words / sentences + 100 * long words / words; about 20 for children's books, 60 for dry prose.

    A word of more than 6 letters is long. In scripts without spaces 1.5 characters count as a word, and a character
    that is not in common use (GB 2312 level 1, Big5 level 1) takes the place of a long word; mixed text adds both up.
    Source of LIX: Björnsson, Läsbarhet, 1968, and Readability of newspapers in 11 languages, Reading Research Quarterly
    18(4), 1983; counting characters this way is this project's own rule.
    """
    words = long_words = 0.0
    num_sentences = 0
    for sentence in sentences(text):
        num_sentences += 1
        for unit in units(sentence):
            if is_character(unit):
                words += 1 / CHARACTERS_PER_WORD
                long_words += is_uncommon_character(unit) / CHARACTERS_PER_WORD
            else:
                words += 1
                long_words += len(unit) > LONG_WORD_LETTERS
    return words / num_sentences + 100 * long_words / words if num_sentences else 0.0
