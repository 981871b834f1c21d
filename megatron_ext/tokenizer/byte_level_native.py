"""A byte-level BPE tokenizer.json for the compiled encoder, or the reason why it needs its library."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from megatron_ext import native
from megatron_ext.tokenizer.engines import NotNativeError
from megatron_ext.tokenizer.unicode_classes import character_classes
from megatron_ext.tokenizer.word_patterns import GPT2, JSON_PATTERNS, WordPattern

Json = dict[str, Any]


def byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies.

    Printable Latin-1 characters stand for themselves, the other 68 bytes in order for U+0100 and up (GPT-2's table).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def added_ids(model: Any) -> tuple[list[int], list[int]] | None:
    """The ids that the post-processor of a library Tokenizer puts before and behind each text; None: it does more."""
    encoding, plain = model.encode("a"), model.encode("a", add_special_tokens=False)
    mask = encoding.special_tokens_mask
    before = next((index for index, special in enumerate(mask) if not special), len(mask))
    prefix, suffix = encoding.ids[:before], encoding.ids[before + len(plain.ids) :]
    if encoding.ids != prefix + plain.ids + suffix or model.encode("").ids != prefix + suffix:
        return None
    return prefix, suffix


def native_byte_level(content: bytes, model: Any, tuning: Any = None) -> tuple[Any, Callable[[str], bool] | None]:
    """The compiled encoder of a tokenizer.json, and which texts may be given to it (None: all).

    Args:
        content: the file, which the library could read.
        model: the library's Tokenizer made from it.
        tuning: a `native.bpe.BpeTuning`; None for the usual sizes.

    Raises:
        NotNativeError: the file uses something that the encoder does not know.
    """
    file = orjson.loads(content)
    for part in ("truncation", "padding"):
        if file.get(part) is not None:
            raise NotNativeError(f"it has {part}")
    accepts = _accepted_texts(file.get("normalizer"))
    pattern, add_prefix_space = _word_pattern(file.get("pre_tokenizer"))
    bpe = file["model"]
    _refuse_unknown_models(bpe)
    vocabulary: dict[str, int] = bpe["vocab"]
    try:
        encoder = native.bpe.ByteLevelBpe.from_merges(
            *_merges(bpe, vocabulary),
            pattern.options() | {"add_prefix_space": add_prefix_space},
            character_classes(),
            _byte_symbols(vocabulary),
            _whole_words(vocabulary) if bpe.get("ignore_merges") else [],
            _special_tokens(file.get("added_tokens") or [], model, accepts),
            tuning or native.bpe.BpeTuning(),
        )
    except ValueError as error:
        raise NotNativeError(str(error)) from None
    return encoder, accepts


def _accepted_texts(normalizer: Json | None) -> Callable[[str], bool] | None:
    if normalizer is None:
        return None
    parts = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    if any(part["type"] != "NFC" for part in parts):
        raise NotNativeError(f"its normalizer is {' and '.join(part['type'] for part in parts)}")
    return _is_nfc if parts else None


def _is_nfc(text: str) -> bool:
    return text.isascii() or unicodedata.is_normalized("NFC", text)


def _word_pattern(pre_tokenizer: Json | None) -> tuple[WordPattern, bool]:
    """The pattern, and whether a space is put before texts."""
    parts = [] if pre_tokenizer is None else [pre_tokenizer]
    if parts and parts[0]["type"] == "Sequence":
        parts = parts[0]["pretokenizers"]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return JSON_PATTERNS[GPT2], parts[0]["add_prefix_space"]
    if kinds == ["Split", "ByteLevel"] and not (parts[1].get("use_regex", True) or parts[1]["add_prefix_space"]):
        pattern = JSON_PATTERNS.get(parts[0]["pattern"].get("Regex"))
        whole = (parts[0]["behavior"], parts[0]["invert"]) in (("Isolated", False), ("Removed", True))
        if pattern is not None and whole:
            return pattern, False
    raise NotNativeError(f"its pre-tokenizer {' and '.join(kinds) or 'none'} is not one of the known ones")


def _refuse_unknown_models(bpe: Json) -> None:
    if bpe.get("type") != "BPE":
        raise NotNativeError(f"its model is {bpe.get('type')}, not BPE")
    for feature in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(feature):
            raise NotNativeError(f"its model has {feature}")


def _merges(bpe: Json, vocabulary: dict[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Bytes of each id, and (left, right, joined) ids of each merge."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in bpe["merges"]]
    lengths = np.ones(max(vocabulary.values()) + 1, np.int32)
    lengths[list(vocabulary.values())] = [len(token) for token in vocabulary]
    rows = [(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs]
    return lengths, np.array(rows, np.int32).reshape(-1, 3)


def _byte_symbols(vocabulary: dict[str, int]) -> NDArray[np.int32]:
    symbols = [vocabulary.get(character, -1) for character in byte_characters()]
    if min(symbols) < 0:
        raise NotNativeError(f"its vocabulary lacks {symbols.count(-1)} of the 256 bytes")
    return np.array(symbols, np.int32)


def _whole_words(vocabulary: dict[str, int]) -> list[tuple[bytes, int]]:
    byte_of = {ord(character): byte for byte, character in enumerate(byte_characters())}
    words = []
    for token, index in vocabulary.items():
        try:
            words.append((bytes(byte_of[ord(character)] for character in token), index))
        except KeyError:  # a special token: no text of bytes is written so
            continue
    return words


def _special_tokens(added: list[Json], model: Any, accepts: object) -> list[list[tuple[str, int]]]:
    """The tokens cut out of the raw text, and those cut out of what is left after normalizing."""
    sets: list[list[tuple[str, int]]] = [[], []]
    for token in added:
        name = token["content"]
        flags = [flag for flag in ("single_word", "lstrip", "rstrip") if token.get(flag)]
        if flags:
            raise NotNativeError(f"its added token {name!r} has {' and '.join(flags)}")
        if accepts is not None and not (name.isascii() or _is_nfc(name)):
            raise NotNativeError(f"its added token {name!r} is not normalized")
        if name:
            sets[token.get("normalized", False)].append((name, model.token_to_id(name)))
    return sets
