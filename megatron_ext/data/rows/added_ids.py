"""Which ids a tokenizer puts around every text on its own account (a bos, an eos of the file's post-processor)."""

from __future__ import annotations

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import Tokenizer

_PROBES = ("0", "1")  # texts that every type of tokenizer can encode


def ids_around_texts(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids before and after the ids of the bare text.

    Raises:
        TokenizerError: the tokenizer does something else with a text than putting ids around it.
    """
    answers = [_around(tokenizer, probe) for probe in _PROBES]
    if answers[0] is None or answers[0] != answers[1]:
        raise TokenizerError(
            "the tokenizer changes a text in another way than putting special tokens around it",
            fix="Leave out --fim-rate, or use another tokenizer",
        )
    return answers[0]


def _around(tokenizer: Tokenizer, probe: str) -> tuple[list[int], list[int]] | None:
    whole = tokenizer.encode_batch([probe]).ids.tolist()
    bare = tokenizer.encode_plain_batch([probe]).ids.tolist()
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return None
