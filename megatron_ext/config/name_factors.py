"""Factors for parameters by name: `PATTERN=FACTOR`, in order; the last pattern that fits a name holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from megatron_ext.errors import ConfigError


class NameFactor(NamedTuple):
    """Parameters whose canonical name fits `pattern` (as file names fit `*`, `?` and `[...]`) take `factor`."""

    pattern: str
    factor: float


def parse_name_factors(words: Sequence[str] | None, flag: str) -> list[NameFactor]:
    """Read `PATTERN=FACTOR PATTERN=FACTOR ...`; None gives no factor.

    Raises:
        ConfigError: one is not of this form, or its factor is negative or not finite; the message names `flag`.
    """
    return [_parse(word, flag) for word in words or ()]


def factor_of(factors: Sequence[NameFactor], name: str) -> float | None:
    """Return the factor for `name`; None where no pattern fits."""
    fitting = [factor for pattern, factor in factors if fnmatchcase(name, pattern)]
    return fitting[-1] if fitting else None


def _parse(word: str, flag: str) -> NameFactor:
    pattern, _, number = word.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = math.nan
    if not pattern or not 0.0 <= factor < math.inf:
        raise ConfigError(
            f"{flag} {word} cannot be read",
            "It is PATTERN=FACTOR, the factor 0 or a positive number",
            f"Give for example {flag} 'embedding.*=0.1'",
        )
    return NameFactor(pattern, factor)
