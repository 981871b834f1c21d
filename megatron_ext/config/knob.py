"""One declaration per knob: type, default, help, unit, bounds, flag and YAML key come from one dataclass field."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from typing import Any

from megatron_ext.errors import ConfigError

INT, FLOAT, BOOL, STR, INTS, STRS = "integer", "number", "true or false", "text", "integers", "words"
_KINDS: dict[Any, str] = {int: INT, float: FLOAT, bool: BOOL, str: STR}


@dataclasses.dataclass(frozen=True)
class Knob:
    """What a field says about itself beyond its name, type and default.

    Args:
        help: what it is and what the special value means, for `--help`.
        flag: Megatron-LM's spelling where it is not `--` + name with hyphens (`--no-` + name for a True default).
        aliases: further accepted spellings of the same flag.
        choices: the allowed words; empty means any.
        unit: unit of the value ("tokens", "iterations", ...).
        bounds: interval of allowed numbers in the usual notation, `"[1, inf)"`, `"(0, 1]"`; empty means any finite one.
        length: required number of items of a list; 0 means at least one.
    """

    help: str
    flag: str = ""
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    unit: str = ""
    bounds: str = ""
    length: int = 0


def knob(default: Any, help: str, **details: Any) -> Any:
    """Declare one setting as a dataclass field; `details` are the further arguments of `Knob`."""
    return dataclasses.field(default=default, metadata={"knob": Knob(help=help, **details)})


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a section as flags, YAML and checks see it."""

    name: str
    kind: str
    optional: bool
    default: Any
    knob: Knob

    @property
    def flag(self) -> str:
        """The flag to name in messages: Megatron-LM's spelling; for a True default the one that turns it off."""
        plain = "--" + self.name.replace("_", "-")
        if self.kind == BOOL and self.default is True:
            return self.knob.flag or "--no-" + plain[2:]
        return self.knob.flag or plain

    @property
    def on_flags(self) -> tuple[str, ...]:
        """Flags that give the value (for a boolean: that set it to true)."""
        if self.kind == BOOL and self.default is True:
            return ("--" + self.name.replace("_", "-"),)
        return (self.flag, *self.knob.aliases)

    @property
    def off_flags(self) -> tuple[str, ...]:
        """Flags that set a boolean to false, so that a flag can undo what a file says; empty for other kinds."""
        if self.kind != BOOL:
            return ()
        if self.default is True:
            return (self.flag, *self.knob.aliases)
        bare = self.flag[2:]
        return ("--" + bare.removeprefix("no-"),) if bare.startswith("no-") else ("--no-" + bare,)

    def parse(self, text: str | list[str]) -> Any:
        """Read what was typed, as this field's type says; raises `ValueError` with the reason."""
        if self.kind in (INTS, STRS):
            items = [text] if isinstance(text, str) else text
            value: Any = tuple(_read_scalar(INT if self.kind == INTS else STR, item) for item in items)
        elif isinstance(text, list):
            raise ValueError(f"is a list; expected {self.expected}")
        else:
            value = _read_scalar(self.kind, text)
        return self.check(value)

    def check(self, value: Any) -> Any:
        """Return `value` in this field's own type (list -> tuple, int -> float); `ValueError` says what is wrong."""
        if value is None:
            if not self.optional:
                raise ValueError(f"cannot be null; expected {self.expected}")
            return None
        value = tuple(value) if isinstance(value, list) and self.kind in (INTS, STRS) else value
        value = float(value) if self.kind == FLOAT and type(value) is int else value
        self._check_type(value)
        self._check_range(value)
        return value

    @property
    def expected(self) -> str:
        """What a right value is, in words."""
        if self.knob.choices:
            return "one of " + ", ".join(self.knob.choices)
        count = f"{self.knob.length} " if self.knob.length else ""
        return f"{count}{self.kind}" + (f" in {self.knob.bounds}" if self.knob.bounds else "")

    def _check_type(self, value: Any) -> None:
        if self.kind in (INTS, STRS):
            item_type = int if self.kind == INTS else str
            good = isinstance(value, tuple) and all(type(item) is item_type and item != "" for item in value)
            good = good and len(value) > 0 and (not self.knob.length or len(value) == self.knob.length)
        else:
            wanted = {INT: int, FLOAT: float, BOOL: bool, STR: str}[self.kind]
            good = type(value) is wanted and value != ""
        if not good:
            raise ValueError(f"is {value!r}; expected {self.expected}")

    def _check_range(self, value: Any) -> None:
        for item in value if isinstance(value, tuple) else (value,):
            if self.knob.choices and item not in self.knob.choices:
                raise ValueError(f"is {item!r}; expected {self.expected}")
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"is {item!r}; expected a finite {self.expected}")
            if self.knob.bounds and not _within(item, self.knob.bounds):
                raise ValueError(f"is {item!r}; expected {self.expected}")


class Section:
    """A group of settings; checks each field's type, choices and bounds when it is made, whoever makes it."""

    def __post_init__(self) -> None:
        for name, setting in settings_of(type(self)).items():
            try:
                object.__setattr__(self, name, setting.check(getattr(self, name)))
            except ValueError as error:
                raise ConfigError(f"{type(self).__name__}.{name} {error}") from None


def settings_of(section: Any) -> dict[str, Setting]:
    """The settings of one section class by field name, in the order they are written."""
    return _settings_of(section)


@functools.cache
def _settings_of(section: Any) -> dict[str, Setting]:
    hints = typing.get_type_hints(section)
    result = {}
    for field in dataclasses.fields(section):
        kind, optional = _kind(hints[field.name])
        result[field.name] = Setting(field.name, kind, optional, field.default, field.metadata["knob"])
    return result


def _kind(hint: Any) -> tuple[str, bool]:
    optional = False
    if isinstance(hint, types.UnionType):
        optional = type(None) in typing.get_args(hint)
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is tuple:
        return (INTS if typing.get_args(hint)[0] is int else STRS), optional
    return _KINDS[hint], optional


def _read_scalar(kind: str, text: str) -> Any:
    readers = {INT: int, FLOAT: float, STR: str}
    try:
        if kind == BOOL:
            return {"true": True, "false": False}[text.lower()]
        return readers[kind](text)
    except (ValueError, KeyError):
        raise ValueError(f"is {text!r}; expected {kind}") from None


def _within(value: float, bounds: str) -> bool:
    low, high = (float(edge) for edge in bounds[1:-1].split(","))
    above = value >= low if bounds[0] == "[" else value > low
    below = value <= high if bounds[-1] == "]" else value < high
    return above and below
