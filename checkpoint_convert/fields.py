"""Row types of a configuration table: how a ModelConfig field is said in `config.json`, both ways.

`to_hf` reads a model (any object with ModelConfig's attributes) and gives entries of `config.json`; `to_megatron` reads
`config.json` and gives ModelConfig fields. A value that the other side cannot hold raises ConversionError.
"""

from __future__ import annotations

import math
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
class Biases:
    """Which projections have a bias: four choices here, two keys there (LlamaConfig's).

    Where a key turns on more biases than the training model has, the others are written as zeros, and `zero_biases`,
    a key of our own, names them, so that import leaves them out again.
    """

    ours: tuple[str, ...] = (
        "add_bias_linear",
        "add_qkv_bias",
        "add_attention_output_bias",
        "add_mlp_up_bias",
        "add_mlp_down_bias",
    )
    theirs: tuple[str, ...] = ("attention_bias", "mlp_bias", "zero_biases")

    def to_hf(self, model: Any) -> dict[str, Any]:
        """Both keys, and the names of the projections with zeros if there are any."""
        qkv, output, up, down = model.biased_projections
        zeros = ["q_proj", "k_proj", "v_proj"] * (output and not qkv) + ["o_proj"] * (qkv and not output)
        zeros += ["gate_proj", "up_proj"] * (down and not up) + ["down_proj"] * (up and not down)
        entries = {"attention_bias": qkv or output, "mlp_bias": up or down}
        return {**entries, "zero_biases": zeros} if zeros else entries

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Four choices, or all at once."""
        groups = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
        zeros = set(look_up(config, "zero_biases", []))
        whole = {name for names in groups if zeros.issuperset(names) for name in names}
        if zeros != whole:
            raise ConversionError(f"config.json: zero_biases = {sorted(zeros)}", f"made of {groups}, each group whole")
        keys = ("attention_bias", "attention_bias", "mlp_bias", "mlp_bias")
        chosen = [
            look_up(config, key, False) and names[0] not in zeros for key, names in zip(keys, groups, strict=True)
        ]
        single = dict(zip(self.ours[1:], chosen, strict=True))
        return {"add_bias_linear": True} if all(chosen) else {"add_bias_linear": False, **single}


@dataclass(frozen=True)
class NormHead:
    """An output layer with rows of length 1; the stored rows keep their length.

    Baichuan 2's files say so by the presence of `z_loss_weight` alone, ours by `norm_head`.
    """

    ours: tuple[str, ...] = ("norm_head",)
    theirs: tuple[str, ...] = ("norm_head", "z_loss_weight")

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The switch, if it is on."""
        return {"norm_head": True} if model.norm_head else {}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The switch."""
        return {"norm_head": bool(look_up(config, "norm_head", config.get("z_loss_weight") is not None))}


@dataclass(frozen=True)
class RotaryDimension:
    """The rotated part of a head: a share here, a number of channels there."""

    heads: str
    hidden: str
    ours: tuple[str, ...] = ("rotary_percent",)
    theirs: tuple[str, ...] = ("rotary_dim",)

    def to_hf(self, model: Any) -> dict[str, Any]:
        """The number of channels."""
        return {"rotary_dim": int(model.head_dim * model.rotary_percent)}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The share, such that its product with the head size is not below the number."""
        size = look_up(config, self.hidden) // look_up(config, self.heads)
        channels = look_up(config, "rotary_dim", size)
        share = channels / size
        return {"rotary_percent": share if int(size * share) == channels else math.nextafter(share, 1.0)}


@dataclass(frozen=True)
class Implied:
    """ModelConfig fields that a rule of the architecture ties to others, so that config.json need not name them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...] = ()

    def to_hf(self, model: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def to_megatron(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: the derived values are right."""
        return {}


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
