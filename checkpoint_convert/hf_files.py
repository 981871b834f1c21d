"""The JSON files of an exported folder, written by us so that transformers 4.57 and 5 read the same model from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.architecture import Architecture
from megatron_ext.errors import ConversionError

CONFIG = "config.json"
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class SpecialIds:
    """Ids that begin a text, end a document and fill a batch; None where the tokenizer has none."""

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def config_of(
    architecture: Architecture, model: Any, vocab_size: int, dtype: str, special: SpecialIds
) -> dict[str, Any]:
    """The whole config.json.

    `vocab_size` is the tokenizer's (padding rows are not exported); the element type stands under the key of either
    generation.
    """
    return {
        "architectures": [architecture.hf_class],
        "model_type": architecture.model_type,
        "vocab_size": vocab_size,
        **architecture.config_entries(model),
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "pad_token_id": special.pad,
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def generation_config_of(special: SpecialIds) -> dict[str, Any]:
    """generation_config.json: the special ids; batches are filled with the end id where there is no padding id."""
    pad = special.eos if special.pad is None else special.pad
    ids = {"bos_token_id": special.bos, "eos_token_id": special.eos, "pad_token_id": pad}
    return {key: value for key, value in ids.items() if value is not None}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write indented JSON, keys in the given order."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: it is missing, no JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConversionError(f"{path} is missing", fix="name a folder that a model was saved in") from None
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__}, not an object")
    return content
