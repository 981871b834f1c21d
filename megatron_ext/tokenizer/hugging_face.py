"""tokenizer.json files, read by the compiled encoder or the `tokenizers` library; nothing is fetched from a hub."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.errors import TokenizerError
from megatron_ext.tokenizer.base import (
    EncodedBatch,
    Tokenizer,
    batch_of_lists,
    fingerprint_of,
    read_tokenizer_file,
    surrounded,
)
from megatron_ext.tokenizer.byte_level_native import added_ids, native_byte_level
from megatron_ext.tokenizer.engines import NativeEncoder, NotNativeError, choose_engine

_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_USUAL_EOD = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|endofdocument|>")
_USUAL_BOS = ("<|begin_of_text|>", "<s>", "<bos>")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json file, alone or in a folder with the side files that name its special tokens.

    Texts get the special tokens that the file's own post-processor adds (a Llama file begins them with bos), as
    Megatron-LM's type of this name does. The end-of-document id is the `eos_token` of tokenizer_config.json or
    special_tokens_map.json; without these files the first of the usual names in the vocabulary.
    """

    type_name = "HuggingFaceTokenizer"

    def __init__(self, path: Path, engine: str = "auto") -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
        file = _tokenizer_file(path)
        content = read_tokenizer_file(file)
        self._model = _load(file, content)
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError(f"{file} defines no tokens", fix="Give a complete tokenizer.json")
        self.vocab_size = max(vocabulary.values()) + 1
        self._added = added_ids(self._model)
        self._native = choose_engine(engine, lambda: self._make_native(content), str(file))
        self.engine = "native" if self._native else "tokenizers"
        names = _special_names(file.parent)
        self.eod_id = self._find(vocabulary, names.get("eos_token"), _USUAL_EOD, file)
        self.bos_id = _first_present(vocabulary, [names.get("bos_token"), *_USUAL_BOS])
        self.pad_id = _first_present(vocabulary, [names.get("pad_token")])
        self.fingerprint = fingerprint_of(content)
        self.files = [file, *(file.parent / name for name in _SIDE_FILES if (file.parent / name).is_file())]

    def encode_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of several texts, with the special tokens of the file's post-processor."""
        if self._native is None or self._added is None:
            return self.encode_reference_batch(texts)
        return surrounded(self._native.encode(texts), *self._added)

    def encode_plain_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """Ids of the bare texts, without the special tokens of the post-processor; those inside a text are kept."""
        return self._native.encode(texts) if self._native else self._encode_by_library(texts)

    def encode_reference_batch(self, texts: Sequence[str]) -> EncodedBatch:
        """The ids that the tokenizers library gives, with the special tokens of the file's post-processor."""
        return batch_of_lists([encoding.ids for encoding in self._model.encode_batch_fast(list(texts))])

    def token_id(self, name: str) -> int | None:
        """The id of a token as it is written in the file; None when there is none."""
        index = self._model.token_to_id(name)
        return None if index is None else int(index)

    def _encode_by_library(self, texts: Sequence[str]) -> EncodedBatch:
        encodings = self._model.encode_batch_fast(list(texts), add_special_tokens=False)
        return batch_of_lists([encoding.ids for encoding in encodings])

    def _make_native(self, content: bytes) -> NativeEncoder:
        if self._added is None:
            raise NotNativeError("its post-processor does more than put ids before and behind a text")
        encoder, accepts = native_byte_level(content, self._model)
        return NativeEncoder(encoder, self._encode_by_library, accepts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        self.check_ids(ids)
        return self._model.decode([int(index) for index in ids], skip_special_tokens=False)

    @staticmethod
    def _find(vocabulary: dict[str, int], name: str | None, usual: tuple[str, ...], file: Path) -> int:
        if name is not None and name not in vocabulary:
            raise TokenizerError(
                f"the eos_token {name!r} named beside {file} is not in its vocabulary", fix="Mend tokenizer_config.json"
            )
        index = _first_present(vocabulary, [name, *usual])
        if index is None:
            raise TokenizerError(
                f"no token of {file} is known to end a document",
                f"Neither an eos_token in {' or '.join(_SIDE_FILES)} beside it nor one of {', '.join(usual)} exists",
                "Put a tokenizer_config.json with an eos_token beside it",
            )
        return index


def _tokenizer_file(path: Path) -> Path:
    if path.is_dir():
        file = path / "tokenizer.json"
        if not file.is_file():
            hint = "; it has a tokenizer.model: use --tokenizer-type Llama2Tokenizer with that file"
            raise TokenizerError(
                f"the folder {path} holds no tokenizer.json{hint if (path / 'tokenizer.model').is_file() else ''}",
                fix="Give a tokenizer.json file or a folder that holds one with --tokenizer-model",
            )
        return file
    if not path.exists():
        raise TokenizerError(
            f"--tokenizer-model {path} does not exist",
            "Names on a model hub are not looked up",
            "Download the tokenizer first and give its folder",
        )
    return path


def _load(file: Path, content: bytes) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise TokenizerError(
            f"{file} is not a tokenizer.json file, or it is damaged ({str(error)[:120]})",
            fix="Give a complete tokenizer.json, or use --tokenizer-type Llama2Tokenizer for a SentencePiece .model",
        ) from None


def _special_names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for side_file in reversed(_SIDE_FILES):
        path = folder / side_file
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path} cannot be read as JSON ({error})", fix="Mend or remove it") from None
        for key in ("eos_token", "bos_token", "pad_token"):
            value = settings.get(key) if isinstance(settings, dict) else None
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[key] = value
    return names


def _first_present(vocabulary: dict[str, int], names: Sequence[str | None]) -> int | None:
    return next((vocabulary[name] for name in names if name is not None and name in vocabulary), None)
