"""Makes the tokenizer that --tokenizer-type and --tokenizer-model name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ext.errors import TokenizerError

if TYPE_CHECKING:
    from megatron_ext.tokenizer.base import Tokenizer


def build_tokenizer(
    tokenizer_type: str, tokenizer_model: str | Path | None, vocab_size: int | None = None, engine: str = "auto"
) -> Tokenizer:
    """The tokenizer of one type, read from its file.

    Args:
        tokenizer_type: one of TOKENIZER_TYPES.
        tokenizer_model: a SentencePiece model file; for HuggingFaceTokenizer a tokenizer.json file or a folder that
            holds one; for TikTokenizer a file of ranked tokens; None for NullTokenizer.
        vocab_size: for NullTokenizer the number of plain ids (its end-of-document id comes on top). For every other
            type the vocabulary comes from the file and this must be None or equal to it.
        engine: auto, native or reference (see engines.py); the ids are the same. NullTokenizer has only one.

    Raises:
        TokenizerError: unknown type or engine, a missing, unreadable or damaged file, sizes that disagree, or an engine
            that cannot read the file.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise TokenizerError(
            f"--tokenizer-type {tokenizer_type} is not known", f"The known types are {', '.join(TOKENIZER_TYPES)}"
        )
    if tokenizer_type == "NullTokenizer":
        return _null(tokenizer_model, vocab_size)
    if tokenizer_model is None:
        raise TokenizerError(f"--tokenizer-type {tokenizer_type} needs a file", fix="Give it with --tokenizer-model")
    tokenizer = _BUILDERS[tokenizer_type](Path(tokenizer_model), engine)
    if vocab_size is not None and vocab_size != tokenizer.vocab_size:
        raise TokenizerError(
            f"--vocab-size {vocab_size} disagrees with {tokenizer_model}",
            f"The file defines {tokenizer.vocab_size} ids",
            f"Give --vocab-size {tokenizer.vocab_size} (a flag wins over a preset's vocab_size), or another tokenizer",
        )
    return tokenizer


def _null(tokenizer_model: str | Path | None, vocab_size: int | None) -> Tokenizer:
    from megatron_ext.tokenizer.null import NullTokenizer

    if tokenizer_model is not None:
        raise TokenizerError("--tokenizer-type NullTokenizer takes no --tokenizer-model", fix="Leave it out")
    if vocab_size is None:
        raise TokenizerError("--tokenizer-type NullTokenizer needs --vocab-size", fix="Give the number of plain ids")
    return NullTokenizer(vocab_size)


def _sentence_piece(path: Path, engine: str) -> Tokenizer:
    from megatron_ext.tokenizer.sentence_piece import SentencePieceTokenizer

    return SentencePieceTokenizer(path, engine)


def _gpt_sentence_piece(path: Path, engine: str) -> Tokenizer:
    from megatron_ext.tokenizer.sentence_piece import GPTSentencePieceTokenizer

    return GPTSentencePieceTokenizer(path, engine)


def _llama2(path: Path, engine: str) -> Tokenizer:
    from megatron_ext.tokenizer.sentence_piece import Llama2Tokenizer

    return Llama2Tokenizer(path, engine)


def _hugging_face(path: Path, engine: str) -> Tokenizer:
    from megatron_ext.tokenizer.hugging_face import HuggingFaceTokenizer

    return HuggingFaceTokenizer(path, engine)


def _tik_token(path: Path, engine: str) -> Tokenizer:
    from megatron_ext.tokenizer.tik_token import TikTokenizer

    return TikTokenizer(path, engine)


_BUILDERS: dict[str, Callable[[Path, str], Tokenizer]] = {
    "SentencePieceTokenizer": _sentence_piece,
    "GPTSentencePieceTokenizer": _gpt_sentence_piece,
    "Llama2Tokenizer": _llama2,
    "HuggingFaceTokenizer": _hugging_face,
    "TikTokenizer": _tik_token,
}
TOKENIZER_TYPES = (*_BUILDERS, "NullTokenizer")
