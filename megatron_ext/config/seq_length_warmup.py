"""Short sequences first: the stages of --seq-length-warmup, each a length that holds for so many tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_ext.errors import ConfigError

_STAGE = re.compile(r"([0-9]+):([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)")


@dataclass(frozen=True)
class LengthStage:
    """One stage.

    Attributes:
        text: as it was typed.
        length: tokens of a sequence, s.
        tokens: tokens to train in such sequences.
    """

    text: str
    length: int
    tokens: int


def parse_length_stage(text: str) -> LengthStage:
    """Read `LENGTH:TOKENS`, as in `512:2e9`.

    Raises:
        ConfigError: it is not of this form, or not two whole numbers of at least 1.
    """
    found = _STAGE.fullmatch(text)
    length, tokens = (Fraction(number) for number in found.groups()) if found else (Fraction(0), Fraction(0))
    if length < 1 or tokens < 1 or tokens.denominator != 1:
        raise ConfigError(
            f"--seq-length-warmup {text} cannot be read",
            "A stage is LENGTH:TOKENS, two whole numbers of at least 1",
            "Give for example --seq-length-warmup 512:2e9 1024:2e9",
        )
    return LengthStage(text, int(length), int(tokens))


def length_after(stages: Sequence[LengthStage], consumed_tokens: int) -> int | None:
    """Length of the stage in which a run stands that has trained on `consumed_tokens`; None after the last stage."""
    for stage in stages:
        consumed_tokens -= stage.tokens
        if consumed_tokens < 0:
            return stage.length
    return None
