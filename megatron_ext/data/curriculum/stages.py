"""Stages: from these percentiles of difficulty so many tokens, then from those."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_ext.data.curriculum.phases import Phase
from megatron_ext.errors import ConfigError

_STAGE = re.compile(r"[0-9.]+-[0-9.]+(\+[0-9.]+-[0-9.]+)*:[0-9.]+([eE]\+?[0-9]{1,2})?")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        text: as it was typed.
        percentiles: (from, to) ranges, 0 the easiest, 100 the hardest.
        tokens: tokens to train on; a sample counts as seq_length of them.
    """

    text: str
    percentiles: tuple[tuple[Fraction, Fraction], ...]
    tokens: int


def parse_stage(text: str) -> Stage:
    """Read `FROM-TO:TOKENS`, or `FROM-TO+FROM-TO:TOKENS`, as in `0-30:2e9`.

    Raises:
        ConfigError: it is not of this form, or its numbers make no sense.
    """
    try:
        if not _STAGE.fullmatch(text):
            raise ValueError
        ranges, tokens = text.split(":")
        percentiles = tuple((Fraction(low), Fraction(high)) for low, high in (r.split("-") for r in ranges.split("+")))
        whole = Fraction(tokens)
        if whole < 1 or whole.denominator != 1 or not all(low < high <= 100 for low, high in percentiles):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"--stages {text} cannot be read",
            "A stage is FROM-TO:TOKENS or FROM-TO+FROM-TO:TOKENS, percentiles of difficulty with 0 <= FROM < TO <= 100 "
            "and a whole number of tokens, at least 1",
            "Give for example --stages 0-30:2e9 20-100:8e9",
        ) from None
    return Stage(text, percentiles, int(whole))


def stage_phases(stages: Sequence[Stage], num_samples: int, seq_length: int) -> list[Phase]:
    """The phases of these stages; tokens that do not fill a sample are left out.

    Args:
        stages: in their order.
        num_samples: samples there are.
        seq_length: tokens in a sample.

    Raises:
        ConfigError: a stage has fewer tokens than a sample.
    """
    for stage in stages:
        if stage.tokens < seq_length:
            raise ConfigError(
                f"--stages {stage.text} has {stage.tokens} tokens", f"One sample of --seq-length has {seq_length}"
            )
    return [
        Phase(
            tuple((round(low * num_samples / 100), round(high * num_samples / 100)) for low, high in stage.percentiles),
            stage.tokens // seq_length,
            f"--stages {stage.text} with {stage.tokens} tokens, {seq_length} in a sample,",
        )
        for stage in stages
    ]
