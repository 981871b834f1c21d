"""Stretched RoPE: the frequencies and the attention factor are transformers' and the textbook's."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.model.rotary_frequencies import Rotary, attention_factor, inverse_frequencies
from tests.unit.model.textbook import speed

CPU = torch.device("cpu")
# base, rotated share of 128 channels, our scaling, transformers' words for it
CASES = {
    "linear": (1e4, 1.0, RopeScaling("linear", 4.0), {"factor": 4.0}),
    "yarn": (1e4, 1.0, RopeScaling("yarn", 16.0, 4096), {"factor": 16.0, "original_max_position_embeddings": 4096}),
    "yarn of half a head": (
        1e6,
        0.5,
        RopeScaling("yarn", 4.0, 32768, 24.0, 2.0, attention_factor=1.5),
        {
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "beta_fast": 24.0,
            "beta_slow": 2.0,
            "attention_factor": 1.5,
        },
    ),
    "yarn by nothing": (
        1e4,
        1.0,
        RopeScaling("yarn", 1.0, 64),
        {"factor": 1.0, "original_max_position_embeddings": 64},
    ),
    "llama 3.1": (
        5e5,
        1.0,
        RopeScaling("llama3", 8.0, 8192),
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "llama3 of other numbers": (
        1e4,
        0.5,
        RopeScaling("llama3", 32.0, 1000, low_freq_factor=2.0, high_freq_factor=9.0),
        {"factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0, "original_max_position_embeddings": 1000},
    ),
}


def theirs(kind: str, base: float, percent: float, words: dict, length: int | None = None) -> tuple:
    parameters = {"rope_type": kind, "rope_theta": base, "partial_rotary_factor": percent, **words}
    config = LlamaConfig(
        head_dim=128, max_position_embeddings=4 * 32768 if kind != "dynamic" else 2048, rope_parameters=parameters
    )
    return ROPE_INIT_FUNCTIONS[kind](config, CPU, length)


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_transformers(name: str):
    base, percent, scaling, words = CASES[name]
    expected, factor = theirs(scaling.kind, base, percent, words)
    rotary = Rotary(base, percent, scaling=scaling)
    found = inverse_frequencies(rotary, int(128 * percent), CPU)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    assert attention_factor(rotary) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("percent", [1.0, 0.5])
def test_ntk_is_transformers_dynamic_one_at_the_length_where_its_factor_is_ours(percent: float):
    """theirs = factor * length / limit - (factor - 1); 4 at 1.75 times the limit with factor 4."""
    expected, factor = theirs("dynamic", 1e4, percent, {"factor": 4.0}, length=3584)
    rotary = Rotary(1e4, percent, scaling=RopeScaling("ntk", 4.0))
    torch.testing.assert_close(inverse_frequencies(rotary, int(128 * percent), CPU), expected, rtol=2e-6, atol=0)
    assert attention_factor(rotary) == factor == 1.0


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all():
    plain, stretched = (inverse_frequencies(Rotary(scaling=s), 128, CPU) for s in (None, RopeScaling("ntk", 3.0)))
    assert stretched[0] == plain[0]
    assert float(plain[-1] / stretched[-1]) == pytest.approx(3.0, rel=1e-5)
    # TeleChat-7B: factor 3 within its first 8192 tokens, which is a base of about 30,528
    torch.testing.assert_close(stretched, inverse_frequencies(Rotary(1e4 * 3 ** (128 / 126)), 128, CPU))


@pytest.mark.parametrize("rotated", [2, 6, 64])
@pytest.mark.parametrize("base", [20.0, 1e4])
@pytest.mark.parametrize("original", [7, 100, 8192])
@pytest.mark.parametrize("kind", ["none", "linear", "yarn", "llama3"])
def test_frequencies_are_the_textbooks(kind: str, original: int, base: float, rotated: int):
    rotary = Rotary(base, scaling=None if kind == "none" else RopeScaling(kind, 5.0, original))
    expected = torch.tensor([speed(rotary, d, rotated) for d in range(rotated // 2)], dtype=torch.float64)
    torch.testing.assert_close(inverse_frequencies(rotary, rotated, CPU).double(), expected, rtol=3e-6, atol=0)


def test_yarns_factor_is_the_papers():
    assert attention_factor(Rotary(scaling=RopeScaling("yarn", 16.0, 64))) == pytest.approx(0.1 * math.log(16) + 1)
    assert attention_factor(Rotary(scaling=RopeScaling("yarn", 16.0, 64, attention_factor=0.5))) == 0.5
    assert attention_factor(Rotary(scaling=RopeScaling("llama3", 16.0, 64))) == 1.0
    assert attention_factor(Rotary()) == 1.0
