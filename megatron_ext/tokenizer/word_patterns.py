r"""The regular expressions that byte-level tokenizers split texts by, and how the compiled scanner is set for each.

The three families and their alternatives stand in csrc/pretokenize.cpp. A pattern is known only by its exact text.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WordPattern:
    """How the compiled scanner splits.

    Attributes:
        family: gpt2, cl100k or o200k.
        contractions: whether 's, 't, 're, 've, 'm, 'll and 'd are words (gpt2, cl100k) or belong to the word before.
        max_digits: digits in one word; runs of any length in the family gpt2.
        slashes: whether / is taken with the line ends behind symbols.
        whole_ending: whether all white space at the end of a text is one word, line ends or not.
    """

    family: str
    contractions: bool = True
    max_digits: int = 1
    slashes: bool = False
    whole_ending: bool = False

    def options(self) -> dict[str, Any]:
        """The attributes by name, as the compiled encoder takes them."""
        return asdict(self)


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CL100K_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _CL100K_REST
QWEN = LLAMA3.replace("{1,3}", "")
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
# The same for the regular expressions of tokenizer.json, where $ is also the end of a line and {1,3}+ a run of runs.
CL100K_JSON = CL100K.replace("{1,3}+", "{1,3}").replace("$", r"\z")
MEGATRON_V1 = r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
MEGATRON_V2 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _O200K_REST
)
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}?|\p{{N}}{{1,3}}"
    + _O200K_REST
)

_CL100K = WordPattern("cl100k", max_digits=3, whole_ending=True)
JSON_PATTERNS = {
    GPT2: WordPattern("gpt2"),
    LLAMA3: WordPattern("cl100k", max_digits=3),
    QWEN: WordPattern("cl100k"),
    CL100K_JSON: _CL100K,
    MEGATRON_V1: WordPattern("cl100k", contractions=False),
    MEGATRON_V2: WordPattern("o200k", contractions=False, slashes=True),
    O200K: WordPattern("o200k", max_digits=3, slashes=True),
}
"""Patterns as a tokenizer.json may hold them."""

TIKTOKEN_PATTERNS = {CL100K: _CL100K, **{text: JSON_PATTERNS[text] for text in (QWEN, MEGATRON_V1, MEGATRON_V2, O200K)}}
"""Patterns as the tiktoken library reads them."""
