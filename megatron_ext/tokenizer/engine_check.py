"""The promise that the compiled encoders give the library's ids, held on the user's own texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import Tokenizer

_SHOWN = 60  # characters and ids in a message


def refuse_different_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Compare the native engine with the library on some texts; nothing is done for another engine.

    Raises:
        TokenizerError: a text gets other ids; the message shows where the first difference is.
    """
    if tokenizer.engine != "native" or not texts:
        return
    found, wanted = tokenizer.encode_batch(texts), tokenizer.encode_reference_batch(texts)
    if np.array_equal(found.lengths, wanted.lengths) and np.array_equal(found.ids, wanted.ids):
        return
    found_ends, wanted_ends = np.cumsum(found.lengths), np.cumsum(wanted.lengths)
    for index, text in enumerate(texts):
        mine = found.ids[found_ends[index] - found.lengths[index] : found_ends[index]].tolist()
        library = wanted.ids[wanted_ends[index] - wanted.lengths[index] : wanted_ends[index]].tolist()
        if mine != library:
            pairs = zip(mine, library, strict=False)
            at = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(library)))
            raise TokenizerError(
                f"the native tokenizer engine gives other ids than the library for {_shortened(text)}: "
                f"from token {at} on {mine[at : at + 8]}, the library {library[at : at + 8]}",
                "Both engines must give the same ids for every text",
                "Use the engine reference, and report the text and the tokenizer",
            )


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"
