"""The row of a configuration table for rotary positions, plain or stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from checkpoint_convert.fields import MISSING, look_up
from megatron_ext.errors import ConversionError

_SCALING_KEYS = {
    "linear": {"factor": "rope_scaling_factor"},
    "yarn": {
        "factor": "rope_scaling_factor",
        "original_max_position_embeddings": "original_max_position_embeddings",
        "beta_fast": "rope_scaling_beta_fast",
        "beta_slow": "rope_scaling_beta_slow",
        "attention_factor": "rope_scaling_attention_factor",
    },
    "llama3": {
        "factor": "rope_scaling_factor",
        "original_max_position_embeddings": "original_max_position_embeddings",
        "low_freq_factor": "rope_scaling_low_freq_factor",
        "high_freq_factor": "rope_scaling_high_freq_factor",
    },
}
"""`rope_type` -> key of its dictionary -> ModelConfig field."""
_YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}


@dataclass(frozen=True)
class Rope:
    """Rotary positions over the whole head, plain or stretched, written in both spellings.

    transformers 5 reads `rope_parameters` and ignores the rest, 4.x reads `rope_theta` and `rope_scaling`: a folder
    with one spelling loads in the other generation with base 10000 and no warning.

    `--rope-scaling-type ntk`, which stretches at every length, is another base: it is written, and comes back, as such.
    """

    ours: tuple[str, ...] = (
        "rotary_base",
        "rope_scaling_type",
        "use_rope_scaling",
        *dict.fromkeys(field for keys in _SCALING_KEYS.values() for field in keys.values()),
    )
    theirs: tuple[str, ...] = ("rope_theta", "rope_parameters", "rope_scaling")

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The base, twice, and the scaling, twice."""
        base, scaling = float(model.rotary_base), model.rope_scaling
        if scaling is not None and scaling.kind == "ntk":
            rotated = int(model.head_dim * model.rotary_percent)
            base, scaling = base * scaling.factor ** (rotated / (rotated - 2)), None
        if scaling is None:
            plain = {"rope_type": "default", "rope_theta": base}
            return {"rope_theta": base, "rope_parameters": plain, "rope_scaling": None}
        values = {
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "attention_factor": scaling.attention_factor,
        }
        stretched = {"rope_type": scaling.kind}
        stretched |= {key: values[key] for key in _SCALING_KEYS[scaling.kind] if values[key] is not None}
        return {
            "rope_theta": base,
            "rope_parameters": {**stretched, "rope_theta": base},
            "rope_scaling": stretched,
        }

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Base and scaling from whichever spelling is there; both must agree."""
        parameters = config.get("rope_parameters") or {}
        found = [
            _scaling_fields(config, key) for key in ("rope_parameters", "rope_scaling") if config.get(key) is not None
        ]
        if found and found[0] != found[-1]:
            raise ConversionError(
                f"config.json names two scalings: rope_parameters = {dict(parameters)}, "
                f"rope_scaling = {dict(config['rope_scaling'])}",
                "they must be equal",
            )
        bases = {float(base) for base in (config.get("rope_theta"), parameters.get("rope_theta")) if base is not None}
        if len(bases) > 1:
            raise ConversionError(
                f"config.json names two rotary bases: rope_theta = {config['rope_theta']}, "
                f"rope_parameters.rope_theta = {parameters['rope_theta']}",
                "they must be equal",
            )
        base = bases.pop() if bases else 10000.0
        return {"rotary_base": int(base) if base == int(base) else base, **(found[0] if found else {})}


def _scaling_fields(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The ModelConfig fields that the dictionary `key` of config.json describes, without the base."""
    given = config[key]
    kind = given.get("rope_type", given.get("type", "default"))
    names = _SCALING_KEYS.get(kind, {})
    plain = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names}
    # `truncate` is what our formula does, and the default there
    other = {name: value for name, value in given.items() if name not in plain and (name, value) != ("truncate", True)}
    known = kind == "default" or kind in _SCALING_KEYS
    if not known or other or given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ConversionError(
            f"config.json: {key} = {dict(given)}",
            f"only rotary positions over the whole head, default, {', '.join(_SCALING_KEYS)}, can be expressed here",
            "convert a model without this scaling",
        )
    if kind == "default":
        return {}
    absent = {"original_max_position_embeddings": config.get("max_position_embeddings"), **_YARN_DEFAULTS}
    fields: dict[str, Any] = {"rope_scaling_type": kind}
    for name, field in names.items():
        value = look_up(given, name, absent[name] if kind == "yarn" and name in absent else MISSING)
        fields[field] = int(value) if name == "original_max_position_embeddings" else value
    return fields
