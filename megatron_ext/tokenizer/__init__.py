"""Text to token ids and back: one interface over SentencePiece files, tokenizer.json files and plain numbers."""

from __future__ import annotations

from megatron_ext.tokenizer.build import TOKENIZER_TYPES, build_tokenizer

__all__ = ["TOKENIZER_TYPES", "build_tokenizer"]
