"""What one Hugging Face architecture is to us: a weight table, a configuration table, and what it cannot express."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_convert.fields import ConfigRow
from checkpoint_convert.rows import Row
from megatron_ext.errors import ConversionError

TRAINING_ONLY = frozenset(
    {
        "hidden_dropout",
        "attention_dropout",
        "make_vocab_size_divisible_by",
        "vocab_size",
        "padded_vocab_size",
    }
)
"""ModelConfig fields that change how a model is trained or stored, not what it computes."""


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face architecture.

    Args:
        name: what `--architecture` calls it.
        hf_class: the entry of `architectures` in config.json.
        model_type: the entry of `model_type`.
        weights: one row per tensor; `{i}` rows stand together, in the order of the file.
        config: one row per ModelConfig field or key of config.json.
        requires: ModelConfig field -> the one value this architecture can hold; import sets it.
        rules: checks beyond a single value; each gets the model and gives an error text or "".
        ignored_hf: names of tensors that published files hold although they are no weights.
        foreign: keys of config.json -> why a file that has them is another model.
        own_files: modelling files that travel with the export; empty for a native class.
    """

    name: str
    hf_class: str
    model_type: str
    weights: tuple[Row, ...]
    config: tuple[ConfigRow, ...]
    requires: Mapping[str, Any]
    rules: tuple[Callable[[Any], str], ...] = ()
    ignored_hf: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict)
    own_files: tuple[Path, ...] = ()

    def check_model(self, model: Any) -> None:
        """Raise ConversionError, naming every field and both values, unless this architecture can hold `model`.

        A ModelConfig field that no row, no requirement and no stated exemption knows must have its default: a new
        knob is refused here until the table says what becomes of it.
        """
        failures = self.failures(model)
        if failures:
            raise ConversionError(
                f"the model cannot be written as {self.hf_class}: " + "; ".join(failures),
                fix="choose another --architecture; nothing was written",
            )

    def failures(self, model: Any) -> list[str]:
        """What of `model` this architecture cannot hold, see `check_model`; empty if it holds all."""
        known = {name for row in self.config for name in row.ours} | set(self.requires) | TRAINING_ONLY
        failures = [
            f"{name} is {getattr(model, name)!r}, {self.hf_class} needs {value!r}"
            for name, value in self.requires.items()
            if getattr(model, name) != value
        ]
        failures += [text for rule in self.rules if (text := rule(model))]
        failures += [
            f"{item.name} is {getattr(model, item.name)!r}, {self.hf_class} knows nothing of it"
            for item in (dataclasses.fields(model) if dataclasses.is_dataclass(model) else ())
            if item.name not in known and getattr(model, item.name) != _default(item)
        ]
        return failures

    def config_entries(self, model: Any) -> dict[str, Any]:
        """The entries of config.json that describe `model` (not the vocabulary, not the special tokens)."""
        entries: dict[str, Any] = {}
        for row in self.config:
            entries |= row.to_hf(model)
        return entries

    def model_fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The ModelConfig fields that `config` (config.json) describes, dropout off.

        Raises:
            ConversionError: a value that cannot be expressed here, or a missing one.
        """
        for key, reason in self.foreign.items():
            if config.get(key) is not None:
                raise ConversionError(f"config.json: {key} = {config[key]!r}", reason)
        fields = {"hidden_dropout": 0.0, "attention_dropout": 0.0, **self.requires}
        for row in self.config:
            fields |= row.to_megatron(config)
        return fields


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default
