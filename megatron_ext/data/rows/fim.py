"""Fill-in-the-middle: a document's middle is moved to its end, so that the model learns to fill a gap.

Source: Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle" (arXiv 2207.14255): split at
two uniform random characters, each of the three parts encoded apart. The flags and the two orders are those of
Megatron-LM's descendants (IEIT-Yuan/Yuan-2.0, megatron/arguments.py and megatron/data/gpt_dataset.py).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from megatron_ext.data.rows.settings import FimSettings
from megatron_ext.data.rows.spans import Segment

_WORD = 1 << 64


class FimDraw(NamedTuple):
    """What happens to one document.

    Attributes:
        apply: whether it is rearranged at all.
        suffix_first: whether the suffix stands first.
        start: number of characters before the middle.
        end: number of characters before the suffix.
    """

    apply: bool
    suffix_first: bool
    start: int
    end: int


def draw(settings: FimSettings, text: str) -> FimDraw:
    """The fate of a document: a pure function of the seed and its text, so of no worker, shard, order or restart.

    Equal documents are treated alike. Each part may be empty.
    """
    digest = hashlib.blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=32, key=settings.seed.to_bytes(8, "little", signed=True)
    ).digest()
    words = [int.from_bytes(digest[place : place + 8], "little") for place in range(0, 32, 8)]
    places = len(text) + 1
    first, second = (word * places // _WORD for word in words[2:])
    return FimDraw(
        words[0] < settings.rate * _WORD,
        words[1] < settings.spm_rate * _WORD,
        min(first, second),
        max(first, second),
    )


def fim_segments(settings: FimSettings, text: str) -> list[Segment]:
    """The document as it is, or rearranged.

    Prefix-suffix-middle: PREFIX prefix SUFFIX suffix MIDDLE middle.
    Suffix-prefix-middle (variant 2 of the paper): PREFIX SUFFIX suffix MIDDLE prefix middle.
    """
    if not text:
        return []
    fate = draw(settings, text)
    if not fate.apply:
        return [Segment(text)]
    prefix, middle, suffix = text[: fate.start], text[fate.start : fate.end], text[fate.end :]
    begin, then, last = (
        Segment(name, special=True) for name in (settings.prefix_token, settings.suffix_token, settings.middle_token)
    )
    if fate.suffix_first:
        parts = [begin, then, Segment(suffix), last, Segment(prefix), Segment(middle)]
    else:
        parts = [begin, Segment(prefix), then, Segment(suffix), last, Segment(middle)]
    return [part for part in parts if part.text]
