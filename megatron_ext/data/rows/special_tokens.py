"""The ids of special tokens, looked up before any row is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from megatron_ext.data.rows.spans import BOS, EOS
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import Tokenizer


def resolve_special_tokens(
    names: Iterable[str], mapping: Mapping[str, str], tokenizer: Tokenizer
) -> dict[str, int | None]:
    """The id of each special token; None only for a "bos" that the tokenizer has not.

    A name is looked up as `mapping` says, else as "bos" or "eos" (the tokenizer's bos_id and eod_id), else in the
    vocabulary under itself.

    Args:
        names: names the row form uses.
        mapping: name -> piece of the vocabulary, or id in decimal digits (--special-token).
        tokenizer: where to look.

    Raises:
        TokenizerError: the vocabulary lacks a name, or `mapping` has a name that nothing uses.
    """
    wanted = list(dict.fromkeys(names))
    unused = [name for name in mapping if name not in wanted]
    if unused:
        raise TokenizerError(
            f"--special-token {unused[0]}={mapping[unused[0]]} changes nothing",
            f"The special tokens of these rows are {', '.join(wanted) or 'none'}",
            "Use one of these names, or leave the flag out",
        )
    return {name: _find(name, mapping.get(name), tokenizer) for name in wanted}


def _find(name: str, target: str | None, tokenizer: Tokenizer) -> int | None:
    if target is None:
        if name == BOS:
            return tokenizer.bos_id
        if name == EOS:
            return tokenizer.eod_id
    piece = name if target is None else target
    index = tokenizer.token_id(piece)
    if index is None and target is not None and target.isascii() and target.isdigit():
        index = int(target)
        if index >= tokenizer.vocab_size:
            raise TokenizerError(
                f"--special-token {name}={target} is not an id", f"The ids go from 0 to {tokenizer.vocab_size - 1}"
            )
    if index is None:
        raise TokenizerError(
            f"the tokenizer has no token {piece!r}, which these rows need",
            fix=f"Use the tokenizer made for this template, or say what stands for it with --special-token "
            f"{name}=PIECE_OR_ID",
        )
    return index
