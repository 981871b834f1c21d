"""Rank files in the manner of tiktoken, under the name that Megatron-LM gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ext import native
from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import EncodedBatch, Tokenizer, batch_of_lists, fingerprint_of, read_tokenizer_file
from megatron_ext.tokenizer.engines import NativeEncoder, NotNativeError, choose_engine
from megatron_ext.tokenizer.tik_token_files import PATTERNS, SETTINGS_NAME, read_ranks, settings_for
from megatron_ext.tokenizer.unicode_classes import character_classes
from megatron_ext.tokenizer.word_patterns import TIKTOKEN_PATTERNS


class TikTokenizer(Tokenizer):
    """Byte-level BPE from a file of ranked tokens.

    Special tokens inside a text become their ids, as in Megatron-LM's type of this name; nothing is put before or
    behind a text. How texts are split and what the special tokens are: see tik_token_files.py.

    Attributes:
        tokens: the bytes of each ordinary token, by id.
        special: the id of each special token.
        pattern: the regular expression that texts are split by.
    """

    type_name = "TikTokenizer"

    def __init__(self, path: Path, engine: str = "auto") -> None:
        content = read_tokenizer_file(path)
        ranked = read_ranks(content, path)
        settings = settings_for(path, content.lstrip()[:1] == b"[", len(ranked))
        names = settings.all_special_tokens()
        if settings.vocab_size is not None:
            ranked = _cut(ranked, settings.vocab_size - len(names), path)
        first_rank, first_special = (len(names), 0) if settings.specials_first else (0, len(ranked))
        self.tokens = {first_rank + rank: token for rank, token in enumerate(ranked)}
        self.special = {name: first_special + place for place, name in enumerate(names)}
        self.pattern = PATTERNS[settings.pattern]
        self.vocab_size = len(ranked) + len(names)
        self.eod_id = self.special[settings.eod]
        self.bos_id = None if settings.bos is None else self.special[settings.bos]
        self.pad_id = None if settings.pad is None else self.special[settings.pad]
        side_file = path.parent / SETTINGS_NAME
        self.files = [path, *([side_file] if side_file.is_file() else [])]
        self.fingerprint = fingerprint_of(b"".join(file.read_bytes() for file in self.files))
        self._library: Any = None
        self._native = choose_engine(engine, lambda: NativeEncoder(self._make_native(), self._by_library), str(path))
        self.engine = "native" if self._native else "tiktoken"

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts."""
        return self._native.encode(texts) if self._native else self._by_library(texts)

    def encode_reference_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """The ids that the tiktoken library gives."""
        return self._by_library(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included; bytes that are no UTF-8 become U+FFFD."""
        self.check_ids(ids)
        names = {index: name.encode() for name, index in self.special.items()}
        parts = (self.tokens[int(index)] if int(index) in self.tokens else names[int(index)] for index in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_id(self, name: str) -> int | None:
        """The id of a special token, or of the token with the UTF-8 bytes of `name`."""
        if name in self.special:
            return self.special[name]
        wanted = name.encode("utf-8", errors="surrogatepass")
        return next((index for index, token in self.tokens.items() if token == wanted), None)

    def _by_library(self, texts: Sequence[str]) -> EncodedBatch:
        if self._library is None:  # takes as long as everything else; many runs never need it
            import tiktoken

            ranks = {token: index for index, token in self.tokens.items()}
            self._library = tiktoken.Encoding(
                "megatron_ext", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special
            )
        return batch_of_lists([self._library.encode(text, allowed_special="all") for text in texts])

    def _make_native(self) -> Any:
        byte_symbols = np.zeros(256, np.int32)
        for index, token in self.tokens.items():
            if len(token) == 1:
                byte_symbols[token[0]] = index
        try:
            return native.bpe.ByteLevelBpe.from_ranks(
                [(token, index) for index, token in self.tokens.items()],
                self.vocab_size,
                TIKTOKEN_PATTERNS[self.pattern].options() | {"add_prefix_space": False},
                character_classes(),
                byte_symbols,
                list(self.special.items()),
            )
        except ValueError as error:
            raise NotNativeError(str(error)) from None


def _cut(ranked: list[bytes], count: int, file: Path) -> list[bytes]:
    if not 256 <= count <= len(ranked):
        raise TokenizerError(
            f"{file} has {len(ranked)} ranked tokens, {count} are asked for",
            "vocab_size is the number of special tokens and of ranked tokens together",
            f"Mend vocab_size in {SETTINGS_NAME}",
        )
    return ranked[:count]
