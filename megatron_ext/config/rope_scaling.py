"""What the `--rope-scaling-*` options say together, every absent value filled in. Pure values, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE is stretched: `--rope-scaling-type` and its options. Each type reads those of its own formula.

    Attributes:
        kind: linear, ntk, yarn or llama3.
        factor: how many times longer the sequences are to be.
        original_positions: tokens of the longest sequence before (`--original-max-position-embeddings`); yarn, llama3.
        beta_fast: yarn leaves pairs alone that turn at least so often over the original length.
        beta_slow: yarn slows pairs down by the whole factor that turn at most so often.
        low_freq_factor: llama3's beta_slow.
        high_freq_factor: llama3's beta_fast.
        attention_factor: what yarn multiplies rotated queries and keys by; None for 0.1 ln(factor) + 1.
    """

    kind: str
    factor: float
    original_positions: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
