"""Which code turns text into ids: the compiled encoders of csrc/, or the library that defines a file format.

Both give the same ids; the compiled ones are much faster. A file that uses something the compiled encoders do not know
is read by its library, and so is a single text whose ids could depend on the version of Unicode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megatron_ext import native
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch

ENGINES = ("auto", "native", "reference")


class NotNativeError(Exception):
    """A file uses something that the compiled encoders do not know; the message says what."""


class NativeEncoder:
    """A compiled encoder, and the library for the texts that it declines.

    Attributes:
        encoder: an encoder of `megatron_ext.native.bpe`.
        reference: the library's ids of some texts.
        accepts: whether a text may be given to the encoder at all; None for every text.
    """

    def __init__(
        self,
        encoder: Any,
        reference: Callable[[Sequence[str]], EncodedBatch],
        accepts: Callable[[str], bool] | None = None,
    ) -> None:
        self.encoder = encoder
        self.reference = reference
        self.accepts = accepts

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts, those of the library."""
        refused = [] if self.accepts is None else [i for i, text in enumerate(texts) if not self.accepts(text)]
        if refused:
            mine = list(texts)
            for index in refused:
                mine[index] = ""
            ids, lengths, declined = self.encoder.encode_batch(mine)
        else:
            ids, lengths, declined = self.encoder.encode_batch(texts)
        missing = sorted({*refused, *declined})
        if not missing:
            return EncodedBatch(ids, lengths)
        found = self.reference([texts[index] for index in missing])
        starts = (np.cumsum(lengths) - lengths)[missing]
        lengths[missing] = found.lengths
        return EncodedBatch(np.insert(ids, np.repeat(starts, found.lengths), found.ids), lengths)


def choose_engine(engine: str, make: Callable[[], NativeEncoder], what: str) -> NativeEncoder | None:
    """The compiled encoder where it is wanted and can be had, else None for the library.

    Args:
        engine: one of ENGINES; auto takes the compiled encoder where it knows everything that the file uses.
        make: builds it; raises NotNativeError where it does not.
        what: the file, for the message.

    Raises:
        TokenizerError: an unknown engine, or `native` for a file that needs the library.
    """
    if engine not in ENGINES:
        raise TokenizerError(f"the tokenizer engine {engine!r} is not known", f"The engines are {', '.join(ENGINES)}")
    if engine == "reference":
        return None
    try:
        if native.bpe is None:
            raise NotNativeError("the compiled extension megatron_ext._native is not built")
        return make()
    except NotNativeError as error:
        if engine == "auto":
            return None
        raise TokenizerError(
            f"the native tokenizer engine cannot be used for {what}: {error}",
            fix="Take the engine auto, which uses the file's own library here",
        ) from None
