"""The table of architectures: adding one is one file here and one line in `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.architectures.baichuan import BAICHUAN
from checkpoint_convert.architectures.llama import LLAMA
from megatron_ext.errors import ConversionError

ARCHITECTURES: dict[str, Architecture] = {item.name: item for item in (LLAMA, BAICHUAN)}


def architecture_for_model(model: Any, name: str = "auto") -> Architecture:
    """The architecture that `--architecture` names, or the first that needs this model's kind of positions.

    Raises:
        ConversionError: no such name, or no architecture has these positions, or the chosen one cannot hold the model.
    """
    if name == "auto":
        kind = model.position_embedding_type
        able = [item for item in ARCHITECTURES.values() if item.requires["position_embedding_type"] == kind]
        if not able:
            kinds = sorted({item.requires["position_embedding_type"] for item in ARCHITECTURES.values()})
            raise ConversionError(
                f"position_embedding_type is {kind!r}: no architecture to export to",
                f"the exported kinds are {', '.join(kinds)}",
            )
        chosen = able[0]
    elif name in ARCHITECTURES:
        chosen = ARCHITECTURES[name]
    else:
        raise ConversionError(f"--architecture {name}", f"the choices are auto, {', '.join(ARCHITECTURES)}")
    chosen.check_model(model)
    return chosen


def architecture_for_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that config.json names in `architectures`.

    Raises:
        ConversionError: it names none, or none that is known.
    """
    named = config.get("architectures") or []
    for item in ARCHITECTURES.values():
        if item.hf_class in named:
            return item
    raise ConversionError(
        f"config.json: architectures = {named}, model_type = {config.get('model_type')!r}",
        f"the classes that can be imported are {', '.join(item.hf_class for item in ARCHITECTURES.values())}",
    )
