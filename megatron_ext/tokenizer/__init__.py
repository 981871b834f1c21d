"""Text to token ids and back: one interface over SentencePiece files, tokenizer.json files and plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_ext.tokenizer.build import TOKENIZER_TYPES, build_tokenizer

if TYPE_CHECKING:
    from megatron_ext.tokenizer.base import Tokenizer

__all__ = ["TOKENIZER_TYPES", "Tokenizer", "build_tokenizer"]
