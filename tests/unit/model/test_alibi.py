"""ALiBi's slopes are the published ones for any number of heads; its bias falls with distance and hides the future."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.model.alibi import alibi_bias, alibi_slopes

EXTRA_OF_40_HEADS = [0.917004, 0.771105, 0.648420, 0.545254, 0.458502, 0.385553, 0.324210, 0.272627]


def published(num_heads: int) -> list[float]:
    """The recursion of the paper's code (arXiv:2108.12409): closest power of two, then every other of twice that."""
    if math.log2(num_heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(num_heads) - 3)))
        return [start * start**i for i in range(num_heads)]
    closest = 2 ** math.floor(math.log2(num_heads))
    return published(closest) + published(2 * closest)[0::2][: num_heads - closest]


def test_8_heads():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]


def test_40_heads_have_the_larger_slopes_last():
    slopes = alibi_slopes(40)
    torch.testing.assert_close(slopes[:32], torch.tensor([2 ** (-i / 4) for i in range(1, 33)]))
    assert [round(slope, 6) for slope in slopes[:4].tolist()] == [0.840896, 0.707107, 0.594604, 0.5]
    assert slopes[31].item() == 0.00390625
    assert [round(slope, 6) for slope in slopes[32:].tolist()] == EXTRA_OF_40_HEADS


def test_112_heads_are_64_and_48_of_the_128():
    slopes = alibi_slopes(112)
    assert slopes[:64].equal(alibi_slopes(64))
    assert slopes[64:].equal(alibi_slopes(128)[0:96:2])


@given(st.integers(1, 200))
def test_slopes_are_the_published_ones(num_heads: int):
    slopes = alibi_slopes(num_heads)
    assert slopes.dtype == torch.float32 and slopes.shape == (num_heads,)
    torch.testing.assert_close(slopes.double(), torch.tensor(published(num_heads)).double(), rtol=1e-6, atol=0)
    assert len(set(slopes.tolist())) == num_heads


@given(st.integers(1, 12), st.integers(1, 20))
def test_bias_is_slope_times_distance_and_the_future_is_hidden(num_heads: int, length: int):
    slopes = alibi_slopes(num_heads)
    bias = alibi_bias(slopes, length)
    assert bias.shape == (1, num_heads, length, length) and bias.dtype == torch.float32
    for i in range(length):
        for j in range(length):
            expected = slopes * (j - i) if j <= i else torch.full((num_heads,), float("-inf"))
            assert bias[0, :, i, j].equal(expected)


def test_a_token_sees_itself_unbiased_and_the_past_less():
    bias = alibi_bias(alibi_slopes(6), 7)[0]
    assert (bias.diagonal(dim1=1, dim2=2) == 0).all()
    last = bias[:, -1]
    assert (last[:, 1:] > last[:, :-1]).all()


@pytest.mark.parametrize("num_heads", [8, 40])
def test_the_absolute_form_gives_the_same_attention(num_heads: int):
    """slope * j, as Bloom stores it, differs by a constant per query."""
    slopes = alibi_slopes(num_heads)
    scores = torch.randn(1, num_heads, 9, 9, generator=torch.Generator().manual_seed(0))
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    absolute = (scores + slopes[:, None, None] * torch.arange(9)).masked_fill(future, float("-inf"))
    torch.testing.assert_close((scores + alibi_bias(slopes, 9)).softmax(-1), absolute.softmax(-1))
