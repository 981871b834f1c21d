"""The class of every code point, as the patterns of byte-level tokenizers see it."""

from __future__ import annotations

import collections
import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

# Bits of a class; csrc/pretokenize.h has the same.
LETTER, NUMBER, SPACE, LINE_END, UPPER_OR_MARK, LOWER_OR_MARK, UNCERTAIN = (1 << bit for bit in range(7))

CODE_POINTS = 0x110000
_LOOKED_AT = 0x40000
_BOTH = UPPER_OR_MARK | LOWER_OR_MARK
_BITS_OF_CATEGORY = {
    "Lu": LETTER | UPPER_OR_MARK,
    "Lt": LETTER | UPPER_OR_MARK,
    "Ll": LETTER | LOWER_OR_MARK,
    "Lm": LETTER | _BOTH,
    "Lo": LETTER | _BOTH,
    "Mn": _BOTH,
    "Mc": _BOTH,
    "Me": _BOTH,
    "Nd": NUMBER,
    "Nl": NUMBER,
    "No": NUMBER,
    "Zs": SPACE,
    "Zl": SPACE,
    "Zp": SPACE,
    "Cn": UNCERTAIN,  # a later version of Unicode may assign it
}
_SPACE_CONTROLS = (9, 10, 11, 12, 13, 0x85)  # White_Space of category Cc


@functools.cache
def character_classes() -> NDArray[np.uint8]:
    r"""uint8 `[0x110000]`: the bits of each code point.

    They follow Unicode's general categories: \p{L}, \p{N}, \p{Lu} and so on as they are named, and \s is the property
    White_Space. Code points that this Python's Unicode tables do not assign are marked as uncertain, and so is all from
    U+40000 on (tags, private use), which is not worth the time to look at.
    """
    categories = map(unicodedata.category, map(chr, range(_LOOKED_AT)))
    bits = bytes(map(collections.defaultdict(int, _BITS_OF_CATEGORY).__getitem__, categories))  # no loop in Python
    classes = np.full(CODE_POINTS, UNCERTAIN, np.uint8)
    classes[:_LOOKED_AT] = np.frombuffer(bits, np.uint8)
    classes[list(_SPACE_CONTROLS)] = SPACE
    classes[[10, 13]] |= LINE_END
    classes.flags.writeable = False
    return classes
