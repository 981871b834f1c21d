"""Stages: so many tokens from these percentiles of difficulty, or from these datasets by weight, then from those."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from megatron_ext.data.curriculum.phases import Phase
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.errors import ConfigError

Percentiles = tuple[tuple[Fraction, Fraction], ...]
"""(from, to) ranges, 0 the easiest, 100 the hardest."""

_RANGES = re.compile(r"[0-9.]+-[0-9.]+(\+[0-9.]+-[0-9.]+)*")
_NUMBER = re.compile(r"[0-9.]+([eE][+-]?[0-9]{1,2})?")
_EVERYTHING: Percentiles = ((Fraction(0), Fraction(100)),)


@dataclass(frozen=True)
class Share:
    """What one dataset gives to a stage.

    Attributes:
        dataset: its name or its number.
        weight: at least 0, against the weights of the stage's other datasets.
        percentiles: of this dataset's samples.
    """

    dataset: str
    weight: Fraction
    percentiles: Percentiles


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        text: as it was typed.
        tokens: tokens to train on; a sample counts as seq_length of them.
        percentiles: of the samples of all datasets together, where `shares` is empty.
        shares: what each dataset gives, where they are named.
    """

    text: str
    tokens: int
    percentiles: Percentiles = ()
    shares: tuple[Share, ...] = ()


def parse_stage(text: str) -> Stage:
    """Read `RANGES:TOKENS` as in `0-30:2e9`, or `NAME*WEIGHT@RANGES,NAME*WEIGHT:TOKENS` with datasets named.

    Raises:
        ConfigError: it is not of this form, or its numbers make no sense.
    """
    words, _, tokens = text.rpartition(":")
    try:
        whole = _number(tokens)
        if whole < 1 or whole.denominator != 1:
            raise ValueError
        if "*" not in words:
            return Stage(text, int(whole), percentiles=_percentiles(words))
        shares = tuple(_share(text, word) for word in words.split(","))
    except ValueError:
        raise ConfigError(
            f"--stages {text} cannot be read",
            "A stage is RANGES:TOKENS, or NAME*WEIGHT:TOKENS with datasets and weights divided by commas, each with "
            "@RANGES behind it where not all of it is meant; RANGES is FROM-TO or FROM-TO+FROM-TO, percentiles of "
            "difficulty with 0 <= FROM < TO <= 100, and TOKENS a whole number, at least 1",
            "Give for example --stages 0-30:2e9 20-100:8e9, or --stages general*9@0-30,finance*1:2e9",
        ) from None
    if not any(share.weight for share in shares):
        raise ConfigError(f"--stages {text}: all weights are 0", "One weight at least is above 0")
    return Stage(text, int(whole), shares=shares)


def _share(text: str, word: str) -> Share:
    name, star, rest = word.strip().partition("*")
    weight, at, ranges = rest.partition("@")
    if not name or not star:
        raise ValueError
    percentiles = _percentiles(ranges) if at else _EVERYTHING
    try:
        return Share(name, _number(weight), percentiles)
    except ValueError:
        raise ConfigError(
            f"--stages {text}: {weight!r} stands where the weight of {name} belongs",
            "A weight is a number, 0 or above",
        ) from None


def _number(text: str) -> Fraction:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return Fraction(text)


def _percentiles(text: str) -> Percentiles:
    if not _RANGES.fullmatch(text):
        raise ValueError
    percentiles = tuple((Fraction(low), Fraction(high)) for low, high in (r.split("-") for r in text.split("+")))
    if not all(low < high <= 100 for low, high in percentiles):
        raise ValueError
    return percentiles


def stage_phases(stages: Sequence[Stage], space: SampleSpace) -> list[Phase]:
    """The phases of these stages; tokens that do not fill a sample are left out.

    Where stages name datasets, rank r of dataset d is that dataset's first sample number plus r.

    Args:
        stages: in their order.
        space: the datasets.

    Raises:
        ConfigError: a stage has fewer tokens than a sample or names no dataset that is there, or some stages name
            datasets and others do not.
    """
    for stage in stages:
        if stage.tokens < space.seq_length:
            raise ConfigError(
                f"--stages {stage.text} has {stage.tokens} tokens",
                f"One sample of --seq-length has {space.seq_length}",
            )
        if bool(stage.shares) != bool(stages[0].shares):
            raise ConfigError(
                f"--stages {stages[0].text} and {stage.text} do not go together",
                "Percentiles are of all datasets together where none is named, else of each dataset alone",
                "Name datasets in every stage or in none",
            )
    return [phase for stage in stages for phase in _phases(stage, space)]


def _phases(stage: Stage, space: SampleSpace) -> list[Phase]:
    count = stage.tokens // space.seq_length
    name = f"--stages {stage.text} with {stage.tokens} tokens, {space.seq_length} in a sample,"
    if not stage.shares:
        return [Phase(_ranks(stage.percentiles, 0, space.num_samples), count, name)]
    phases: list[Phase] = []
    for share, quota in zip(stage.shares, quotas([share.weight for share in stage.shares], count), strict=True):
        dataset = space.dataset(share.dataset, f"--stages {stage.text}")
        ranges = _ranks(share.percentiles, space.starts[dataset], space.sizes[dataset])
        if quota:
            whose = f"{name} takes {share.dataset} by weight and"
            phases.append(Phase(ranges, quota, whose, mixed=bool(phases)))
    return phases


def _ranks(percentiles: Percentiles, first: int, size: int) -> tuple[tuple[int, int], ...]:
    return tuple((first + round(low * size / 100), first + round(high * size / 100)) for low, high in percentiles)


def quotas(weights: Sequence[Fraction], count: int) -> list[int]:
    """`count` divided by weight into whole numbers: rounded down, and one more where most was cut off.

    Args:
        weights: at least 0, not all of them 0; of equal parts cut off the first counts more.
        count: the sum of what is returned.
    """
    exact = [weight * count / sum(weights) for weight in weights]
    whole = [int(number) for number in exact]
    by_cut = sorted(range(len(exact)), key=lambda index: whole[index] - exact[index])
    for index in by_cut[: count - sum(whole)]:
        whole[index] += 1
    return whole
