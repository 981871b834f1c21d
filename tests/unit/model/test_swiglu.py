"""SwiGLU is silu(gate) * up in value and gradient, and keeps its input alone; in PyTorch's operations and in ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model import swiglu as module
from megatron_ext.model.swiglu import native_swiglu, swiglu
from megatron_ext.platform.cpu_kernels import CPU_KERNELS
from tests.unit.model.ulps import assert_rounded, threads

needs_kernels = pytest.mark.skipif(CPU_KERNELS is None, reason="the kernels are not built, or no AVX-512 with bf16")
BOTH = [swiglu, pytest.param(native_swiglu, marks=needs_kernels)]
WIDTHS = [1, 15, 16, 17, 100, 1408, 32001]
Function = Callable[[Tensor], Tensor]


def case(width: int, dtype: torch.dtype, rows: tuple[int, ...] = (3, 2)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(width)
    given = 4 * torch.randn(*rows, 2 * width, generator=generator)
    return given.to(dtype), torch.randn(*rows, width, generator=generator).to(dtype)


def formula(given: Tensor) -> Tensor:
    gate, up = given.chunk(2, -1)
    return gate / (1 + torch.exp(-gate)) * up


def cores(given: Tensor) -> Tensor:
    """megatron-core's, whose offset of `up` is 0."""
    gate, up = given.chunk(2, -1)
    return functional.silu(gate) * (up + 0.0)


def results(function: Function, given: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    given = given.detach().clone().requires_grad_()
    out = function(given)
    out.backward(upstream)
    return out.detach(), given.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", WIDTHS)
def test_pytorchs_operations_give_cores_bits(width: int, dtype: torch.dtype):
    given, upstream = case(width, dtype)
    for one, other in zip(results(swiglu, given, upstream), results(cores, given, upstream), strict=True):
        assert one.dtype == dtype and one.equal(other)


@pytest.mark.parametrize("function", BOTH)
def test_in_fp32_the_slope_is_that_of_the_value(function: Function):
    given = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(function, (given,), eps=1e-2, atol=2e-3, rtol=2e-3, nondet_tol=0.0)


@needs_kernels
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernels_round_the_formula_once(width: int):
    given, upstream = case(width, torch.bfloat16)
    expected = results(formula, given.double(), upstream.double())
    for actual, exact in zip(results(native_swiglu, given, upstream), expected, strict=True):
        # of the slope 1 + x (1 - s) nothing may be left but fp32's rounding of 1, times |up * upstream|
        assert_rounded(actual, exact, 1e-6)


@needs_kernels
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernels_agree_with_pytorchs_operations(width: int):
    """Which round silu(gate) and the products on the way: three roundings of 2^-8 in all."""
    given, upstream = case(width, torch.bfloat16)
    for one, other in zip(results(native_swiglu, given, upstream), results(swiglu, given, upstream), strict=True):
        torch.testing.assert_close(one, other, rtol=3 * 2.0**-8, atol=1e-2)


@needs_kernels
def test_gates_of_any_size():
    """From where the exponential overflows to where the sigmoid is 1; infinite gates, and what is no number."""
    gates = torch.tensor([-3e38, -1e4, -200.0, -100.0, -88.0, -60.0, -20.0, -1.28, -0.0, 0.0, 1e-30, 5.0, 90.0, 3e38])
    given = torch.cat([gates, torch.ones_like(gates)]).bfloat16()
    upstream = torch.ones_like(gates).bfloat16()
    expected = results(cores, given.double(), upstream.double())
    for actual, exact in zip(results(native_swiglu, given, upstream), expected, strict=True):
        assert_rounded(actual, exact, 1e-7)
    special = torch.tensor([float("inf"), float("nan"), 1.0, 1.0], dtype=torch.bfloat16)
    out, grad = results(native_swiglu, special, torch.ones(2, dtype=torch.bfloat16))
    assert out[0] == float("inf") and out[1].isnan() and grad[1].isnan() and grad[3].isnan()


@pytest.mark.parametrize("function", BOTH)
def test_it_keeps_its_input_and_leaves_it_alone(function: Function):
    given, upstream = case(17, torch.bfloat16)
    before, kept = given.clone(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        out = function(given.requires_grad_())
    assert [tensor.data_ptr() for tensor in kept] == [given.data_ptr()]
    out.backward(upstream)
    assert given.detach().equal(before)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("transposed", ["input", "gradient"])
def test_the_memory_layout_does_not_matter(function: Function, transposed: str):
    given, upstream = case(20, torch.bfloat16)
    expected = results(function, given, upstream)
    if transposed == "input":
        given = given.transpose(0, 1).contiguous().transpose(0, 1)
    else:
        upstream = upstream.transpose(0, 2).contiguous().transpose(0, 2)
    assert all(one.equal(other) for one, other in zip(results(function, given, upstream), expected, strict=True))


@needs_kernels
@pytest.mark.parametrize("width", [100, 1408])
def test_the_number_of_threads_changes_no_bit(width: int):
    given, upstream = case(width, torch.bfloat16, (401,))
    with threads(1):
        alone = results(native_swiglu, given, upstream)
    for number in (2, 3):
        with threads(number):
            again = results(native_swiglu, given, upstream)
        assert all(one.equal(other) for one, other in zip(again, alone, strict=True))


def test_what_the_kernels_do_not_take_goes_to_pytorch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CPU_KERNELS", None)
    given, upstream = case(17, torch.float32)
    for one, other in zip(results(native_swiglu, given, upstream), results(swiglu, given, upstream), strict=True):
        assert one.equal(other)
