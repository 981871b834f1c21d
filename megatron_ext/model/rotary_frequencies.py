"""How fast each pair of channels turns under RoPE, plain or stretched to longer sequences. All in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.config.rope_scaling import RopeScaling


@dataclass(frozen=True)
class Rotary:
    """What RoPE does to a head.

    Attributes:
        base: `--rotary-base`.
        percent: `--rotary-percent`, the share of each head that is rotated, from its beginning.
        interleaved: `--rotary-interleaved`: channels 2d and 2d + 1 form a pair, instead of d and d + D/2.
        scaling: None for plain RoPE.
    """

    base: float = 10000.0
    percent: float = 1.0
    interleaved: bool = False
    scaling: RopeScaling | None = None


def inverse_frequencies(rotary: Rotary, rotated: int, device: torch.device) -> Tensor:
    """Return the angle by which each pair turns from one position to the next: fp32 `[D/2]`, radians.

    Args:
        rotary: base and scaling.
        rotated: D, the rotated channels of a head.
        device: where to compute.

    Sources: plain, base^(-2d/D): arXiv:2104.09864, section 3.2.2. linear, all divided by the factor:
    arXiv:2306.15595, equation 4. ntk, base * factor^(D/(D-2)) as base, so that the slowest pair slows down by the
    factor and the fastest not at all: arXiv:2309.00071, section 3.1. yarn: the same, section 3.2. llama3: the
    published code of Llama 3.1 (https://github.com/meta-llama/llama-models).
    """
    scaling = rotary.scaling
    base = rotary.base
    if scaling is not None and scaling.kind == "ntk":
        base *= scaling.factor ** (rotated / (rotated - 2))
    plain = 1.0 / base ** (torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated)
    if scaling is None:
        return plain
    return _SCALINGS[scaling.kind](plain, rotary, rotated)


def attention_factor(rotary: Rotary) -> float:
    """Return what rotated queries and keys are multiplied by, 1 except for yarn.

    Source: arXiv:2309.00071, section 3.4 (sqrt(1/t), which multiplies queries and keys each).
    """
    scaling = rotary.scaling
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0


def _linear(plain: Tensor, rotary: Rotary, rotated: int) -> Tensor:
    assert rotary.scaling is not None
    return plain / rotary.scaling.factor


def _ntk(plain: Tensor, rotary: Rotary, rotated: int) -> Tensor:
    return plain  # the base has changed


def _yarn(plain: Tensor, rotary: Rotary, rotated: int) -> Tensor:
    """Slow down by a share that rises evenly over the pairs between beta_fast and beta_slow turns."""
    scaling = rotary.scaling
    assert scaling is not None

    def pair_with(turns: float) -> float:
        """Which pair, as a fraction, turns so often over the original length."""
        return rotated * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

    first = max(math.floor(pair_with(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_with(scaling.beta_slow)), rotated - 1)
    width = max(last - first, 0.001)
    slowed = ((torch.arange(rotated // 2, dtype=torch.float32, device=plain.device) - first) / width).clamp(0, 1)
    return plain / scaling.factor * slowed + plain * (1 - slowed)


def _llama3(plain: Tensor, rotary: Rotary, rotated: int) -> Tensor:
    """Slow down by a share that falls evenly with the number of turns, between the two factors."""
    scaling = rotary.scaling
    assert scaling is not None
    turns = scaling.original_positions * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain


_SCALINGS: dict[str, Callable[[Tensor, Rotary, int], Tensor]] = {
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "llama3": _llama3,
}
