"""The table of architectures: adding one is one file here and one line in `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.architectures.baichuan import BAICHUAN
from checkpoint_convert.architectures.bloom import BLOOM
from checkpoint_convert.architectures.codegen import CODEGEN
from checkpoint_convert.architectures.llama import LLAMA
from checkpoint_convert.architectures.qwen2 import QWEN2
from megatron_ext.errors import ConversionError

ARCHITECTURES: dict[str, Architecture] = {item.name: item for item in (LLAMA, QWEN2, BAICHUAN, BLOOM, CODEGEN)}
"""The first that can hold a model is chosen. Biases of queries, keys and values alone go to Llama, with zeros for the
output's: transformers 5 reads every tokenizer beside a Qwen2ForCausalLM as Qwen's own, whatever its file says."""


def architecture_for_model(model: Any, name: str = "auto") -> Architecture:
    """The architecture that `--architecture` names, or the first that can hold this model.

    Raises:
        ConversionError: no such name, or no architecture has these positions, or none can hold the model: then what
            the nearest one lacks.
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
        chosen = min(able, key=lambda item: len(item.failures(model)))
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
