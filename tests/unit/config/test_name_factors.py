"""Factors by name: how they are read, and which one holds."""

from __future__ import annotations

import re

import pytest

from megatron_ext.config.name_factors import factor_of, parse_name_factors
from megatron_ext.errors import ConfigError


def test_the_last_pattern_that_fits_holds():
    factors = parse_name_factors(("*=1", "decoder.layers.[01].*=0.5", "*.bias=0"), "--lr-multipliers")
    found = [factor_of(factors, name) for name in ("a", "decoder.layers.1.w", "decoder.layers.1.bias", "x.Bias")]
    assert found == [1.0, 0.5, 0.0, 1.0]
    assert factor_of(factors[1:], "decoder.layers.2.w") is None
    assert parse_name_factors(None, "--lr-multipliers") == []


def test_a_pattern_may_hold_an_equals_sign():
    assert parse_name_factors(["a=b=2e-1"], "--lr-multipliers") == [("a=b", 0.2)]


@pytest.mark.parametrize("word", ["a", "=1", "a=", "a=x", "a=-1", "a=nan", "a=inf"])
def test_what_cannot_be_read_is_refused(word: str):
    with pytest.raises(ConfigError, match=f"--weight-decay-multipliers {re.escape(word)} cannot be read"):
        parse_name_factors([word], "--weight-decay-multipliers")
