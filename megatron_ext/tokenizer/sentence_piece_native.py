"""A SentencePiece model for the compiled encoder, or the reason why it needs its library."""

from __future__ import annotations

from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from megatron_ext import native
from megatron_ext.tokenizer.engines import NotNativeError

_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _USER_DEFINED, _UNUSED, _BYTE = 1, 4, 5, 6  # SentencePiece.Type
_KIND_NORMAL, _KIND_USER_DEFINED, _KIND_RESERVED = 0, 1, 2  # SentencePieceBpe::Kind


def native_sentence_piece(content: bytes, tuning: Any = None) -> Any:
    """The compiled encoder of a SentencePiece BPE model with the identity normaliser.

    Args:
        content: a .model file that the library could read.
        tuning: a `native.bpe.BpeTuning`; None for the usual sizes.

    Raises:
        NotNativeError: the model uses something else.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = [piece.type for piece in model.pieces]
    names = [piece.piece for piece in model.pieces]
    _refuse_unknown_features(model, types, names)
    kinds = {_NORMAL: _KIND_NORMAL, _USER_DEFINED: _KIND_USER_DEFINED}
    scores = np.array([piece.score for piece in model.pieces], np.float32)
    ranks = np.unique(-scores, return_inverse=True)[1]  # the best score has rank 0, equal scores have equal ranks
    flags = {
        "add_dummy_prefix": normalizer.add_dummy_prefix,
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "escape_whitespaces": normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "unk_id": names.index(trainer.unk_piece),
    }
    byte_ids = [names.index(f"<0x{byte:02X}>") for byte in range(256)] if trainer.byte_fallback else []
    try:
        return native.bpe.SentencePieceBpe(
            names,
            ranks.astype(np.int32),
            np.array([kinds.get(kind, _KIND_RESERVED) for kind in types], np.uint8),
            flags,
            np.array(byte_ids, np.int32),
            tuning or native.bpe.BpeTuning(),
        )
    except ValueError as error:
        raise NotNativeError(str(error)) from None


def _refuse_unknown_features(model: Any, types: list[int], names: list[str]) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    kind = trainer.ModelType.Name(trainer.model_type).lower()
    obstacles = {
        f"it is a {kind} model, not BPE": trainer.model_type != _BPE,
        f"its normaliser is {normalizer.name or 'a rule table'}, not identity": bool(normalizer.precompiled_charsmap),
        "it has unused pieces": _UNUSED in types,
        "it does not name its unknown piece": trainer.unk_piece not in names,
        "a user-defined piece holds a space": any(
            kind == _USER_DEFINED and " " in name for kind, name in zip(types, names, strict=True)
        ),
        "its byte pieces are incomplete": trainer.byte_fallback and types.count(_BYTE) != 256,
    }
    for obstacle, found in obstacles.items():
        if found:
            raise NotNativeError(obstacle)
