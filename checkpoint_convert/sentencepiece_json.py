"""A SentencePiece model said again as a `tokenizers` model, id for id.

SentencePiece normalises a text (replacement rules, runs of spaces, the leading mark), cuts out user-defined symbols,
and segments the rest as one string, spaces included. The same steps are put together here from the parts of the
`tokenizers` library. What cannot be said this way is refused; the caller still compares ids on real text.

The ids of BPE models came out equal on every text tried. Unigram models choose the segmentation with the best sum
of scores; where two sums tie but for rounding (`====` as `=` `===` or `===` `=`), the libraries can choose differently.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARK = "▁"
"""SentencePiece's visible space, U+2581."""

UNIGRAM, BPE = 1, 2
UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6


def read_model(path: Path) -> Any:
    """The parsed ModelProto of a SentencePiece file.

    Raises:
        ConversionError: the file is no SentencePiece model, or of a kind that has no counterpart.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model: Any = vars(sentencepiece_model_pb2)["ModelProto"]()  # made at import, so no type checker sees it
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ConversionError(f"{path} is no SentencePiece model: {error}") from error
    kind = model.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        raise ConversionError(f"{path} is a SentencePiece model of kind {kind}", "only BPE and unigram can be exported")
    if model.trainer_spec.treat_whitespace_as_suffix or not model.normalizer_spec.escape_whitespaces:
        raise ConversionError(
            f"{path} writes spaces in an unusual way",
            "treat_whitespace_as_suffix must be false and escape_whitespaces true",
        )
    return model


def tokenizer_of(model: Any, begins_with_bos: bool) -> Tokenizer:
    """The `tokenizers` Tokenizer with the ids of `model` (a ModelProto).

    Args:
        model: from `read_model`.
        begins_with_bos: whether the training tokenizer puts the bos id before each text.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers, processors

    symbols = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]
    tokenizer = Tokenizer(_bpe(model, bool(symbols)) if model.trainer_spec.model_type == BPE else _unigram(model))
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    if symbols:
        longest_first = sorted((symbol.replace(" ", MARK) for symbol in symbols), key=len, reverse=True)
        pattern = Regex("|".join(re.escape(symbol) for symbol in longest_first))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = _decoder(model)
    special = [AddedToken(piece.piece, normalized=False, special=True) for piece in model.pieces if _is_special(piece)]
    tokenizer.add_special_tokens(special)
    if begins_with_bos:
        bos = special_pieces(model)["bos_token"]
        ids = [(bos, model.trainer_spec.bos_id)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=ids
        )
    return tokenizer


def special_pieces(model: Any) -> dict[str, str]:
    """The pieces that transformers calls unk_token, bos_token, eos_token, pad_token; only those that exist."""
    spec = model.trainer_spec
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    return {name: model.pieces[index].piece for name, index in ids.items() if 0 <= index < len(model.pieces)}


def merges_of(model: Any) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model, the first to apply first.

    SentencePiece joins the adjacent pair whose joined piece has the highest score. Every way to cut a piece in two
    known pieces is therefore a merge, ranked by the piece's score; the cuts of one piece stand together.
    """
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    joinable = {piece.piece for piece in model.pieces if piece.type not in (UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    merges = []
    for piece in model.pieces:
        if piece.piece not in joinable:
            continue
        text = piece.piece
        for cut in range(1, len(text)):
            if text[:cut] in joinable and text[cut:] in joinable:
                merges.append((-piece.score, ids[text], cut, text[:cut], text[cut:]))
    return [(left, right) for *_, left, right in sorted(merges)]


def _bpe(model: Any, whole_symbols: bool) -> Any:
    from tokenizers import models

    spec = model.trainer_spec
    return models.BPE(
        vocab={piece.piece: index for index, piece in enumerate(model.pieces)},
        merges=merges_of(model),
        unk_token=model.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
        ignore_merges=whole_symbols,  # a symbol that was cut out whole is its own piece
    )


def _unigram(model: Any) -> Any:
    from tokenizers import models

    spec = model.trainer_spec
    vocabulary = [(piece.piece, piece.score) for piece in model.pieces]
    return models.Unigram(vocabulary, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)


def _normalizer(spec: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(MARK))
    steps.append(normalizers.Replace(" ", MARK))
    return normalizers.Sequence(steps)


def _decoder(model: Any) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _is_special(piece: Any) -> bool:
    return piece.type in (UNKNOWN, CONTROL)
