"""A file of ranked tokens said again as a `tokenizers` model, id for id.

tiktoken joins the adjacent pair whose joined bytes are the token of the best rank, so every way to cut a token in two
tokens is a merge with that rank, and a word that is a token is taken whole. `tokenizers` ranks the cuts of one token
one after the other, where tiktoken takes the leftmost place; texts where that matters are hardly ever met, and the
caller compares ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.errors import ConversionError
from megatron_ext.tokenizer.byte_level_native import byte_characters
from megatron_ext.tokenizer.tik_token import TikTokenizer
from megatron_ext.tokenizer.word_patterns import CL100K, CL100K_JSON

if TYPE_CHECKING:
    from megatron_ext.tokenizer.base import Tokenizer

JSON_TEXTS = {CL100K: CL100K_JSON}
"""Patterns that the two libraries write differently."""


def write_tik_token(tokenizer: Tokenizer, file: Path) -> None:
    """Write the tokenizer.json with the ids of a TikTokenizer.

    Raises:
        ConversionError: it is another kind of tokenizer.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    if not isinstance(tokenizer, TikTokenizer):
        raise ConversionError(f"{type(tokenizer).__name__} is no TikTokenizer")
    characters = byte_characters()
    names = {token: "".join(characters[byte] for byte in token) for token in tokenizer.tokens.values()}
    vocabulary = {names[token]: index for index, token in tokenizer.tokens.items()} | tokenizer.special
    merges = [
        (names[token[:cut]], names[token[cut:]])
        for _, token in sorted(tokenizer.tokens.items())
        for cut in range(1, len(token))
        if token[:cut] in names and token[cut:] in names
    ]
    model = Fast(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(JSON_TEXTS.get(tokenizer.pattern, tokenizer.pattern)), "isolated")
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    model.decoder = decoders.ByteLevel()
    by_id = sorted(tokenizer.special, key=tokenizer.special.__getitem__)
    model.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in by_id])
    model.save(str(file))
