"""What torch.compile is given for a GPU says the same as the operations that compute without it."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.model.cross_entropy import (
    Scoring,
    logit_gradient_formula,
    row_statistics,
    sums_below_formula,
    write_logit_gradient,
)
from megatron_ext.model.rotary import _rotate, rotated_formula
from megatron_ext.model.swiglu import swiglu, swiglu_formula
from tests.unit.model.test_cross_entropy import Group


@pytest.mark.parametrize("max_z", [0.0, 0.3])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_gradient_of_logits(max_z: float, in_place: bool):
    """The labels of the second rank's first columns, so that some rows have theirs elsewhere."""
    scores, labels = torch.randn(9, 7) * 3, torch.arange(9)
    weight = torch.rand(9, 1)
    statistics = row_statistics(scores, labels, 2, Scoring(Group(), max_z))[2]
    expected, found = torch.empty_like(scores), scores.clone()
    write_logit_gradient(expected, scores, statistics, weight)
    out = found if in_place else torch.empty_like(scores)
    logit_gradient_formula(out, found, statistics, weight)
    torch.testing.assert_close(out, expected)


def test_sums_of_exponentials():
    scores = torch.randn(5, 11).bfloat16()
    largest = scores.amax(-1).float()
    expected = (scores.double() - largest.double()[:, None]).exp().sum(-1)
    torch.testing.assert_close(sums_below_formula(scores, largest).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
def test_rotation(interleaved: bool, rotated: int):
    x, angles = torch.randn(6, 2, 3, 8), torch.randn(6, 1, 1, rotated // 2)
    tables = angles.cos(), angles.sin()
    torch.testing.assert_close(rotated_formula(x, *tables, interleaved), _rotate(x, *tables, interleaved))


def test_swiglu():
    x = torch.randn(4, 3, 10)
    torch.testing.assert_close(swiglu_formula(x), swiglu(x))
