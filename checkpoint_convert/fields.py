"""Row types of a configuration table: how a ModelConfig field is said in `config.json`, both ways.

`to_hf` reads a model (any object with ModelConfig's attributes) and gives entries of `config.json`; `to_megatron` reads
`config.json` and gives ModelConfig fields. A value that the other side cannot hold raises ConversionError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_ext.errors import ConversionError

MISSING: Any = object()
"""Stands for "no default": the key must be in config.json."""


class ConfigRow(Protocol):
    """What the engine needs of a configuration row."""

    @property
    def ours(self) -> tuple[str, ...]:
        """The ModelConfig fields that this row accounts for."""

    @property
    def theirs(self) -> tuple[str, ...]:
        """The keys of config.json that this row accounts for."""

    def to_hf(self, model: Any) -> dict[str, Any]:
        """Entries of config.json."""

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """ModelConfig fields."""


@dataclass(frozen=True)
class Field:
    """One value under two names.

    Args:
        name: ModelConfig field that import sets.
        key: key of config.json.
        read: attribute that export reads: the resolved value where the field itself may be None.
        default: what a config.json without the key means.
    """

    name: str
    key: str
    read: str = ""
    default: Any = MISSING

    @property
    def ours(self) -> tuple[str, ...]:
        """The one field."""
        return (self.name,)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The (resolved) value under its key."""
        return {self.key: getattr(model, self.read or self.name)}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The value under its field."""
        return {self.name: look_up(config, self.key, self.default)}


@dataclass(frozen=True)
class Negated:
    """One truth value that the two sides ask for in opposite words."""

    name: str
    key: str
    default: bool

    @property
    def ours(self) -> tuple[str, ...]:
        """The one field."""
        return (self.name,)

    @property
    def theirs(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The opposite of the field."""
        return {self.key: not getattr(model, self.name)}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The opposite of the key."""
        return {self.name: not look_up(config, self.key, self.default)}


@dataclass(frozen=True)
class QueryGroups:
    """Grouped-query attention: a switch and a count here, `num_key_value_heads` there (equal to the heads when off)."""

    ours: tuple[str, ...] = ("group_query_attention", "num_query_groups")
    theirs: tuple[str, ...] = ("num_key_value_heads",)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The resolved number of groups."""
        return {"num_key_value_heads": model.query_groups}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The switch is on exactly when there are fewer groups than heads."""
        heads = look_up(config, "num_attention_heads")
        groups = look_up(config, "num_key_value_heads", heads)
        return {"group_query_attention": True, "num_query_groups": groups} if groups != heads else {}


@dataclass(frozen=True)
class HeadSize:
    """The size of one head; a config.json without it means hidden_size / num_attention_heads."""

    ours: tuple[str, ...] = ("kv_channels",)
    theirs: tuple[str, ...] = ("head_dim",)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The resolved head size."""
        return {"head_dim": model.head_dim}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The given size, or the quotient."""
        quotient = look_up(config, "hidden_size") // look_up(config, "num_attention_heads")
        return {"kv_channels": look_up(config, "head_dim", quotient)}


@dataclass(frozen=True)
class Rope:
    """Plain rotary positions, written in both spellings.

    transformers 5 reads `rope_parameters` and ignores the rest, 4.x reads `rope_theta` and `rope_scaling`: a folder
    with one spelling loads in the other generation with base 10000 and no warning. Scaled variants are refused.
    """

    ours: tuple[str, ...] = ("rotary_base",)
    theirs: tuple[str, ...] = ("rope_theta", "rope_parameters", "rope_scaling")

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The base, twice."""
        base = float(model.rotary_base)
        return {
            "rope_theta": base,
            "rope_parameters": {"rope_type": "default", "rope_theta": base},
            "rope_scaling": None,
        }

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The base from whichever spelling is there; both must agree."""
        parameters = config.get("rope_parameters") or {}
        for key in ("rope_parameters", "rope_scaling"):
            given = config.get(key) or {}
            kind = given.get("rope_type", given.get("type", "default"))
            if kind != "default" or given.get("partial_rotary_factor", 1.0) != 1.0:
                raise ConversionError(
                    f"config.json: {key} = {dict(given)}",
                    "only plain rotary positions over the whole head can be expressed here",
                    "convert a model without position scaling",
                )
        bases = {float(base) for base in (config.get("rope_theta"), parameters.get("rope_theta")) if base is not None}
        if len(bases) > 1:
            raise ConversionError(
                f"config.json names two rotary bases: rope_theta = {config['rope_theta']}, "
                f"rope_parameters.rope_theta = {parameters['rope_theta']}",
                "they must be equal",
            )
        base = bases.pop() if bases else 10000.0
        return {"rotary_base": int(base) if base == int(base) else base}


@dataclass(frozen=True)
class Constant:
    """A key of config.json that has one value for every model of this table; import refuses another value.

    Args:
        key: the key.
        value: what export writes.
        default: what a config.json without the key means; `value` if not given.
    """

    key: str
    value: Any
    default: Any = MISSING
    ours: tuple[str, ...] = ()

    @property
    def theirs(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The value."""
        return {self.key: self.value}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing; the value is checked."""
        found = look_up(config, self.key, self.value if self.default is MISSING else self.default)
        if found != self.value:
            raise ConversionError(f"config.json: {self.key} = {found!r}", f"only {self.value!r} can be expressed here")
        return {}


@dataclass(frozen=True)
class Written:
    """A key of config.json that export writes for other readers and import does not need."""

    key: str
    value: Any
    ours: tuple[str, ...] = ()

    @property
    def theirs(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The value."""
        return {self.key: self.value}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing."""
        return {}


def look_up(config: Mapping[str, Any], key: str, default: Any = MISSING) -> Any:
    """The value of `key`; `default` where the key is absent or null; ConversionError where there is no default."""
    value = config.get(key)
    if value is not None:
        return value
    if default is MISSING:
        raise ConversionError(
            f"config.json has no value for {key}", fix="complete config.json from the model's publisher"
        )
    return default
