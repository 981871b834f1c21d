"""A document as text for people: what is learned and what is not told apart by colour, or by brackets."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.store.loss_mask import LEARNED, LEARNED_AS_EOD, NOT_LEARNED
from megatron_ext.tokenizer.base import Tokenizer

_CONTEXT = 16  # tokens decoded before a run, so that its first word keeps its space
# Terminals obey control characters and reorder text at these marks: shown as escapes instead.
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
_REORDERING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@dataclass(frozen=True)
class Marks:
    """What stands before and after a run of tokens of each code of the loss mask, and the line that explains it."""

    around: dict[int, tuple[str, str]]
    legend: str


_END = "\x1b[0m"
COLOURS = Marks(
    {NOT_LEARNED: ("\x1b[90m", _END), LEARNED: ("\x1b[32m", _END), LEARNED_AS_EOD: ("\x1b[4;35m", _END)},
    f"\x1b[32mlearned{_END}, \x1b[90mnot learned{_END}, \x1b[4;35mthe end of the document is learned here{_END}",
)
BRACKETS = Marks(
    {NOT_LEARNED: ("", ""), LEARNED: ("[[", "]]"), LEARNED_AS_EOD: ("{{", "}}")},
    "[[learned]], not learned, {{the end of the document is learned here}}",
)


def marks_for(stream: IO[str]) -> Marks:
    """Colours on a terminal, unless the environment has NO_COLOR; brackets elsewhere."""
    return COLOURS if stream.isatty() and not os.environ.get("NO_COLOR") else BRACKETS


@dataclass(frozen=True)
class DocumentText:
    """How documents are shown.

    Attributes:
        tokenizer: None shows ids only.
        with_ids: show the ids too.
        marks: how the codes of the loss mask are told apart.
        max_tokens: tokens shown of a document; 0 shows all.
        eod_id: the id shown as `<eod>`, None if it is not known.
    """

    tokenizer: Tokenizer | None
    with_ids: bool
    marks: Marks
    max_tokens: int = 0
    eod_id: int | None = None

    def render(self, tokens: NDArray, mask: NDArray[np.uint8] | None) -> str:
        """The document as text.

        Args:
            tokens: integers `[t]`.
            mask: uint8 `[t]`, codes of the loss mask; None for a document that is learned whole, which has no marks.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        shown = len(tokens) if self.max_tokens == 0 else min(len(tokens), self.max_tokens)
        ids = [int(token) for token in tokens[:shown]]
        codes = None if mask is None else mask[:shown].tolist()
        parts = []
        if self.tokenizer is not None:
            parts.append(
                "".join(self._marked(code, self._text(ids, begin, end)) for code, begin, end in self._runs(ids, codes))
            )
        if self.with_ids or self.tokenizer is None:
            runs = (
                self._marked(code, " ".join(map(str, ids[begin:end]))) for code, begin, end in self._runs(ids, codes)
            )
            parts.append(" ".join(runs))
        if shown < len(tokens):
            parts.append(f"... and {len(tokens) - shown:,} tokens more")
        return "\n".join(parts)

    def _runs(self, ids: Sequence[int], codes: Sequence[int] | None) -> Iterator[tuple[int | None, int, int]]:
        """(code, begin, end) of tokens alike; an end-of-document id stands alone, because it has no text of its own."""
        kinds = [
            (None if codes is None else codes[i], i if token == self.eod_id else -1) for i, token in enumerate(ids)
        ]
        begin = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or kinds[end] != kinds[begin]:
                yield kinds[begin][0], begin, end
                begin = end

    def _marked(self, code: int | None, text: str) -> str:
        before, after = ("", "") if code is None else self.marks.around.get(code, (f"<mask code {code}>", ""))
        return f"{before}{text}{after}"

    def _text(self, ids: Sequence[int], begin: int, end: int) -> str:
        if self.tokenizer is None or ids[begin] == self.eod_id:
            return "<eod>"
        first = max(0, begin - _CONTEXT)
        context, whole = self.tokenizer.decode(ids[first:begin]), self.tokenizer.decode(ids[first:end])
        if not whole.startswith(context):  # a character whose bytes are cut between two runs
            context, whole = "", self.tokenizer.decode(ids[begin:end])
        return printable(whole.removeprefix(context))


def printable(text: str) -> str:
    """The text with every character that would steer a terminal as an escape; line feeds and tabs stay."""
    return "".join(_escape(character) for character in text)


def _escape(character: str) -> str:
    if character in "\n\t" or (unicodedata.category(character) not in _UNSAFE and character not in _REORDERING):
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
