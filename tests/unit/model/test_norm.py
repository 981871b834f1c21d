"""Both norms follow their formula in fp64 and torch's own functions, in value and in every gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.config import ModelConfig
from megatron_ext.model import norm as module
from megatron_ext.model.norm import NORMS, LayerNorm, RMSNorm, native_rms_norm, norm_of, rms_norm
from megatron_ext.platform.cpu_kernels import CPU_KERNELS
from megatron_ext.platform.kernels import APEX, NATIVE, Kernels
from tests.unit.model.ulps import assert_rounded, threads

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(7, 3, 32), (1, 1, 5), (4, 3), (2, 3, 4, 17)]


def config(dtype: torch.dtype = torch.float32, sequence_parallel: bool = False) -> SimpleNamespace:
    return SimpleNamespace(params_dtype=dtype, sequence_parallel=sequence_parallel)


def random_norm(name: str, hidden: int, dtype: torch.dtype, eps: float = 1e-5) -> torch.nn.Module:
    norm = NORMS[name](config(dtype), hidden, eps)
    generator = torch.Generator().manual_seed(hidden)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(1 + 0.5 * torch.randn(hidden, generator=generator))
    return norm


def formula(name: str, x: Tensor, parameters: list[Tensor], eps: float) -> Tensor:
    if name == "RMSNorm":
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * parameters[0]
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.pow(2).mean(-1, keepdim=True) + eps).sqrt() * parameters[0] + parameters[1]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_norm_is_its_formula_in_value_and_gradient(name: str, shape: tuple[int, ...], dtype: torch.dtype):
    eps = 1e-3
    norm = random_norm(name, shape[-1], dtype, eps)
    generator = torch.Generator().manual_seed(1)
    x = (3 * torch.randn(shape, generator=generator) + 1).to(dtype).requires_grad_()
    upstream = torch.randn(shape, generator=generator).to(dtype)
    out = norm(x)
    out.backward(upstream)

    exact = [tensor.detach().double().requires_grad_() for tensor in (x, *norm.parameters())]
    expected = formula(name, exact[0], exact[1:], eps)
    expected.backward(upstream.double())
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert_near(out.detach(), expected.detach(), TOLERANCE[dtype])
    for actual, wanted in zip((x, *norm.parameters()), exact, strict=True):
        assert actual.grad.dtype == dtype
        assert_near(actual.grad, wanted.grad, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("name", NORMS)
def test_norm_is_torchs(name: str):
    norm = random_norm(name, 24, torch.float32)
    ours = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(2)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in norm.parameters()]
    if name == "RMSNorm":
        expected = functional.rms_norm(theirs, (24,), weights[0], 1e-5)
    else:
        expected = functional.layer_norm(theirs, (24,), *weights, 1e-5)
    out = norm(ours)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    for parameter, weight in zip(norm.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.grad, weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_the_gradient_is_the_slope_of_the_value(name: str):
    """Central differences of an fp32 function: coarse, but independent of any formula."""
    norm = random_norm(name, 6, torch.float32, 1e-2)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
    weights = list(norm.parameters())

    def value(x: Tensor, *_: Tensor) -> Tensor:
        return norm(x)

    assert torch.autograd.gradcheck(value, (x, *weights), eps=1e-2, atol=2e-3, rtol=2e-3, nondet_tol=0.0)


@pytest.mark.parametrize("name", NORMS)
def test_inputs_and_upstream_gradients_are_left_alone(name: str):
    norm = random_norm(name, 8, torch.float32)
    x = torch.randn(4, 8).requires_grad_()
    upstream = torch.randn(4, 8)
    before = x.detach().clone(), upstream.clone(), [p.detach().clone() for p in norm.parameters()]
    norm(x).backward(upstream)
    assert x.detach().equal(before[0]) and upstream.equal(before[1])
    assert all(p.detach().equal(old) for p, old in zip(norm.parameters(), before[2], strict=True))


@pytest.mark.parametrize("name", NORMS)
def test_memory_layout_does_not_matter(name: str):
    norm = random_norm(name, 8, torch.float32)
    x = torch.randn(5, 3, 8)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert norm(strided).equal(norm(x))


def test_a_row_of_zeros_stays_zero_and_has_a_finite_gradient():
    norm = RMSNorm(config(), 4)
    x = torch.zeros(2, 4, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.count_nonzero() == 0 and x.grad.isfinite().all()


def test_statistics_are_fp32_under_half_precision():
    """The square of 300 overflows fp16; in fp32 it does not."""
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    torch.testing.assert_close(RMSNorm(config(torch.float16), 64)(x), torch.ones(1, 64, dtype=torch.float16))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_parameters_are_marked_for_sequence_parallelism(name: str, sequence_parallel: bool):
    norm = NORMS[name](config(torch.bfloat16, sequence_parallel), 8)
    for parameter in norm.parameters():
        assert parameter.sequence_parallel is sequence_parallel
        assert (parameter.dtype, parameter.shape) == (torch.bfloat16, (8,))


def test_names_of_the_parameters_are_canonical():
    assert [name for name, _ in RMSNorm(config(), 4).named_parameters()] == ["weight"]
    assert [name for name, _ in LayerNorm(config(), 4).named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("name", NORMS)
def test_what_megatron_core_passes_besides_is_taken(name: str):
    norm = NORMS[name](config=config(), hidden_size=8, eps=0.25, unknown_to_us=True)
    assert norm.eps == 0.25


@pytest.mark.parametrize("name", NORMS)
def test_apexs_kernels_are_called_as_apex_wants(name: str, monkeypatch: pytest.MonkeyPatch):
    """A stand-in with Apex's signatures; parameters, their names and their marks stay ours."""
    module = ModuleType("apex.normalization.fused_layer_norm")
    module.fused_rms_norm_affine = lambda input, weight, normalized_shape, eps=1e-6: functional.rms_norm(
        input, normalized_shape, weight, eps
    )
    module.fused_layer_norm_affine = lambda input, weight, bias, normalized_shape, eps=1e-6: functional.layer_norm(
        input, normalized_shape, weight, bias, eps
    )
    for parent in ("apex", "apex.normalization"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kind = norm_of(ModelConfig(normalization=name), Kernels(norm=APEX))
    apex, ours = kind(config(sequence_parallel=True), 24, 1e-3), NORMS[name](config(sequence_parallel=True), 24, 1e-3)
    assert isinstance(kind, type) and [*apex.state_dict()] == [*ours.state_dict()]
    assert apex.weight.sequence_parallel
    x = torch.randn(6, 2, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(apex(x), ours(x))
    assert norm_of(ModelConfig(normalization=name), Kernels()) is NORMS[name]


needs_kernels = pytest.mark.skipif(CPU_KERNELS is None, reason="the kernels are not built, or no AVX-512 with bf16")


def native_case(rows: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and upstream gradient, bf16."""
    generator = torch.Generator().manual_seed(hidden)
    x, upstream = (torch.randn(rows, hidden, generator=generator) for _ in range(2))
    weight = 1 + 0.5 * torch.randn(hidden, generator=generator)
    return (3 * x + 1).bfloat16(), weight.bfloat16(), upstream.bfloat16()


def native_results(x: Tensor, weight: Tensor, upstream: Tensor, function: Callable[..., Tensor] = native_rms_norm):
    x, weight = (tensor.detach().clone().requires_grad_() for tensor in (x, weight))
    out = function(x, weight, 1e-3)
    out.backward(upstream)
    return out.detach(), x.grad, weight.grad


@needs_kernels
@pytest.mark.parametrize("rows", [1, 63, 64, 200])
@pytest.mark.parametrize("hidden", [1, 15, 16, 17, 100, 512, 4097])
def test_our_kernels_round_the_formula_once(hidden: int, rows: int):
    x, weight, upstream = native_case(rows, hidden)
    actual = native_results(x, weight, upstream)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    expected = formula("RMSNorm", exact[0], exact[1:], 1e-3)
    expected.backward(upstream.double())
    assert_rounded(actual[0], expected.detach())
    # what the gradients subtract and sum is larger than what remains of it: by fp32's rounding of the largest
    lost = 1e-6 * float(upstream.abs().max() * weight.abs().max())
    for one, other in zip(actual[1:], exact, strict=True):
        assert_rounded(one, other.grad, lost)


@needs_kernels
@pytest.mark.parametrize("hidden", [1, 17, 512])
def test_our_kernels_agree_with_pytorchs_operations(hidden: int):
    case = native_case(70, hidden)
    for one, other in zip(native_results(*case), native_results(*case, function=rms_norm), strict=True):
        torch.testing.assert_close(one, other, rtol=2.0**-7, atol=1e-5)


@needs_kernels
def test_of_our_kernels_the_number_of_threads_changes_no_bit():
    """Of a sum that cancels, the gradient of the weight shows in which order it was made."""
    x, weight, upstream = native_case(501, 100)
    case = torch.cat([x, x]), weight, torch.cat([upstream, -upstream])
    with threads(1):
        alone = native_results(*case)
    for number in (2, 3):
        with threads(number):
            assert all(one.equal(other) for one, other in zip(native_results(*case), alone, strict=True))


@needs_kernels
def test_our_kernels_take_any_memory_layout_and_change_no_input():
    x, weight, upstream = native_case(12, 20)
    expected = native_results(x, weight, upstream)
    turned = [tensor.t().contiguous().t() for tensor in (x, upstream)]
    again = native_results(turned[0], weight, turned[1])
    assert all(one.equal(other) for one, other in zip(again, expected, strict=True))
    for tensor, before in zip((x, weight, upstream), native_case(12, 20), strict=True):
        assert tensor.equal(before)


def test_what_our_kernels_do_not_take_goes_to_pytorch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CPU_KERNELS", None)
    case = [tensor.float() for tensor in native_case(5, 17)]
    for one, other in zip(native_results(*case), native_results(*case, function=rms_norm), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("name", NORMS)
def test_our_kernels_are_rms_norms(name: str):
    kind = norm_of(ModelConfig(normalization=name), Kernels(norm=NATIVE))
    assert (
        issubclass(kind, NORMS[name])
        and kind(config(), 4).state_dict().keys() == NORMS[name](config(), 4).state_dict().keys()
    )
    assert name == "LayerNorm" or kind(config(), 4).function.func is native_rms_norm
