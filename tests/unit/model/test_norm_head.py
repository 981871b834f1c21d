"""Rows divided by their length: torch's `normalize` in fp64, in value and gradient, whatever type the weight has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model import row_chunks
from megatron_ext.model.norm_head import normalized_rows

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def case(dtype: torch.dtype, rows: int = 11, hidden: int = 7) -> tuple[Tensor, Tensor]:
    """Rows of very different lengths, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.logspace(-3, 3, rows)[:, None]
    weight = torch.randn(rows, hidden, generator=generator) * lengths
    return weight.to(dtype), torch.randn(rows, hidden, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_value_and_gradient_are_those_of_torch(dtype: torch.dtype):
    weight, upstream = case(dtype)
    given, exact = weight.clone().requires_grad_(), weight.double().requires_grad_()
    out, expected = normalized_rows(given), functional.normalize(exact, dim=-1)
    out.backward(upstream)
    expected.backward(upstream.double())
    assert out.dtype == given.grad.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    lengths = weight.double().norm(dim=-1, keepdim=True)
    gradients = [given.grad.double() * lengths, exact.grad * lengths]  # of one size in every row
    torch.testing.assert_close(*gradients, rtol=TOLERANCE[dtype], atol=3 * TOLERANCE[dtype])


def test_the_gradient_is_that_of_finite_differences():
    weight, _ = case(torch.float32, rows=3, hidden=5)
    scaled = (weight / weight.norm(dim=-1, keepdim=True) * torch.tensor([[0.5], [1.0], [2.0]])).requires_grad_()
    assert torch.autograd.gradcheck(normalized_rows, scaled, eps=1e-3, atol=2e-3, rtol=2e-3)


def test_lengths_are_fp32_under_half_precision():
    """The square of 300 overflows fp16; in fp32 it does not."""
    rows = normalized_rows(torch.full((2, 64), 300.0, dtype=torch.float16))
    assert rows.tolist() == [[0.125] * 64] * 2


def test_a_row_of_zeros_stays_zero_and_so_does_a_gradient_of_zeros():
    weight = torch.zeros(2, 4, requires_grad=True)
    out = normalized_rows(weight)
    upstream = torch.tensor([[0.0] * 4, [1.0] * 4])
    out.backward(upstream)
    same = torch.zeros(2, 4, requires_grad=True)
    functional.normalize(same, dim=-1).backward(upstream)
    assert out.count_nonzero() == 0
    torch.testing.assert_close(weight.grad, same.grad)


def test_to_normalise_twice_changes_nothing():
    once = normalized_rows(case(torch.float32)[0])
    torch.testing.assert_close(normalized_rows(once), once, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("elements", [1, 7, 20, 1 << 20])
def test_the_size_of_a_chunk_changes_no_bit(elements: int, monkeypatch: pytest.MonkeyPatch):
    weight, upstream = case(torch.bfloat16)
    results = []
    for size in (1 << 20, elements):
        monkeypatch.setattr(row_chunks, "CHUNK_ELEMENTS", size)
        given = weight.clone().requires_grad_()
        out = normalized_rows(given)
        out.backward(upstream)
        results.append((out.detach(), given.grad))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_the_callers_tensors_are_left_alone():
    weight, upstream = case(torch.float32)
    given, before = weight.clone().requires_grad_(), upstream.clone()
    normalized_rows(given).backward(upstream)
    assert given.detach().equal(weight) and upstream.equal(before)
