"""The tokenizer files of an exported folder, and the check that they give the training ids."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.errors import ConversionError

if TYPE_CHECKING:
    from megatron_ext.tokenizer.base import Tokenizer

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "中文是世界上使用人数最多的语言之一，今天天气很好！",
    "mixed 中英文 text，with English 和中文。",
    "  two leading,  two inner   three, trailing  ",
    "",
    " ",
    "tabs\tand\nnew lines\r\n\n  indented",
    "digits 0 12 345 6789 3.14159 1,000,000 ３５％",
    "def f(x):\n    return x ** 2  # code\n",
    "emoji 😀👍🏽👨‍👩‍👧 rare 𠮷 ｱ ﬁ Ⅷ",
    "Ünïcödé naïve café Привет мир مرحبا 안녕하세요",
    "!?.,;:'\"()[]{}<>@#$%^&*-_=+\\|/~`",
)
"""What every export is tried on: plain text of several scripts, runs of spaces, digits, code, pieces no one knows."""

CONFIG, SPECIAL, JSON, SENTENCEPIECE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
)
SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


def training_tokenizer(tokenizer_type: str | None, files: Sequence[Path], vocab_size: int) -> Tokenizer | None:
    """The tokenizer that the checkpoint was trained with, from the files stored in it; None if it has none.

    Raises:
        ConversionError: files are missing, or the vocabulary is not the model's.
    """
    from megatron_ext.tokenizer import build_tokenizer

    if tokenizer_type in (None, "NullTokenizer"):
        return None
    if not files:
        raise ConversionError(
            f"the checkpoint names the tokenizer type {tokenizer_type} but holds no tokenizer file",
            fix="restore the tokenizer file in the checkpoint",
        )
    tokenizer = build_tokenizer(tokenizer_type, files[0])
    if tokenizer.vocab_size != vocab_size:
        raise ConversionError(
            f"{files[0]} defines {tokenizer.vocab_size} ids, the model was trained with {vocab_size}",
            fix="restore the tokenizer that the model was trained with",
        )
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_length: int) -> None:
    """Write the tokenizer files under `folder`, such that transformers 4.57 and 5 give the ids of `tokenizer`.

    The class is named PreTrainedTokenizerFast, which both generations read as "take tokenizer.json as it stands"; their
    classes for one architecture rebuild it with their own steps.

    Raises:
        ConversionError: a sample text gets other ids.
    """
    source = tokenizer.files[0]
    if tokenizer.type_name in SENTENCEPIECE_TYPES:
        special = _write_sentencepiece(folder, source, begins_with_bos=tokenizer.type_name == "Llama2Tokenizer")
        extra: dict[str, Any] = {}
    elif tokenizer.type_name == "TikTokenizer":
        from checkpoint_convert.tik_token_json import write_tik_token

        write_tik_token(tokenizer, folder / JSON)
        special, extra = {}, {}
    else:
        shutil.copyfile(source, folder / JSON)
        special, extra = {}, _chat_template(tokenizer.files[1:])
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eod_id, "pad_token": tokenizer.pad_id}
    special |= _tokens_of(folder / JSON, ids)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special,
        **extra,
    }
    _write_json(folder / CONFIG, settings)
    _write_json(folder / SPECIAL, special)
    if isinstance(extra.get("chat_template"), str):
        (folder / "chat_template.jinja").write_text(extra["chat_template"], encoding="utf-8")
    check_ids(folder / JSON, tokenizer)


def check_ids(file: Path, tokenizer: Tokenizer, samples: Sequence[str] = SAMPLES) -> None:
    """Raise ConversionError, with the first text that differs, unless `file` gives the ids of `tokenizer`."""
    from tokenizers import Tokenizer as Fast

    written = Fast.from_file(str(file))
    compare_ids([written.encode(text).ids for text in samples], tokenizer, samples, "tokenizer.json")


def compare_ids(found: Sequence[Sequence[int]], tokenizer: Tokenizer, samples: Sequence[str], what: str) -> None:
    """Raise ConversionError unless `found[i]` are the ids of `samples[i]`; `what` names where they come from.

    A text of which nothing is left may get a lone bos: SentencePiece alone leaves it out there.
    """
    for text, ids in zip(samples, found, strict=True):
        wanted = tokenizer.encode(text)
        if list(ids) != wanted and (wanted or list(ids) != [tokenizer.bos_id]):
            raise ConversionError(
                f"{what} gives {list(ids)} for {text!r}, the training tokenizer gives {wanted}",
                "an exported tokenizer gives the training ids",
                "this tokenizer cannot be exported; train with another one",
            )


def _write_sentencepiece(folder: Path, source: Path, begins_with_bos: bool) -> dict[str, str]:
    from checkpoint_convert.sentencepiece_json import read_model, special_pieces, tokenizer_of

    model = read_model(source)
    shutil.copyfile(source, folder / SENTENCEPIECE)
    tokenizer_of(model, begins_with_bos).save(str(folder / JSON))
    return special_pieces(model)


def _tokens_of(file: Path, ids: dict[str, int | None]) -> dict[str, str]:
    from tokenizers import Tokenizer as Fast

    written = Fast.from_file(str(file))
    tokens = {name: written.id_to_token(index) for name, index in ids.items() if index is not None}
    return {name: token for name, token in tokens.items() if token is not None}


def _chat_template(side_files: Sequence[Path]) -> dict[str, Any]:
    for file in side_files:
        if file.name == CONFIG:
            template = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
            return {"chat_template": template} if template else {}
    return {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
