"""What computes on a GPU in place of PyTorch's own operations: the same numbers, but for one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.model.cross_entropy import Scoring
from megatron_ext.model.linear_cross_entropy import Targets, linear_cross_entropy
from megatron_ext.model.rotary import apply_rotary
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.model.swiglu import swiglu_of
from megatron_ext.model.weight_gradient import add_product
from megatron_ext.platform.kernels import COMPILED, TORCH, Kernels
from tests.gpu.marks import NEEDS_A_GPU
from tests.unit.model.test_cross_entropy import Group

pytestmark = NEEDS_A_GPU


def random(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(size, device="cuda").to(dtype)


def near(found: Tensor, expected: Tensor, relative: float) -> None:
    bound = relative * float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_product_is_added_in_fp32(dtype: torch.dtype):
    left, right = random(70, 300, dtype=dtype), random(300, 130, dtype=dtype)
    total = torch.full((70, 130), 1e3, device="cuda")
    expected = total.double() + left.double() @ right.double()
    before = total.data_ptr()
    add_product(total, left, right)
    near(total, expected, 1e-6)
    assert total.data_ptr() == before


@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize("kernels", [TORCH, COMPILED])
def test_losses_and_gradients_are_those_of_fp64(kernels: str, max_z: float, monkeypatch: pytest.MonkeyPatch):
    """In several chunks, the last one smaller, with rows that only pad the vocabulary."""
    monkeypatch.setattr("megatron_ext.model.linear_cross_entropy.GPU_CHUNK_LOGITS", 1 << 15)
    monkeypatch.setattr("megatron_ext.model.linear_cross_entropy.CHUNK_TOKENS", 1)
    hidden, weight = random(100, 2, 64), random(1024, 64) / 8
    labels, mask = torch.randint(0, 1000, (100, 2), device="cuda"), torch.rand(100, 2, device="cuda")

    def run(hidden: Tensor, weight: Tensor, kernels: str) -> tuple[Tensor, ...]:
        hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        targets = Targets(labels, mask.to(torch.float32), 1000, Scoring(Group(), max_z, kernels))
        losses = linear_cross_entropy(hidden, weight, None, targets)[0]
        (losses * mask).sum().backward()
        return losses.detach(), hidden.grad, weight.grad

    wide = hidden.double().requires_grad_(), weight.double().requires_grad_()
    logits = (wide[0] @ wide[1].T)[..., :1000]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(100, 2)
    ((losses + max_z * logits.amax(-1) ** 2) * mask).sum().backward()
    exact = losses.detach(), wide[0].grad, wide[1].grad
    for one, expected in zip(run(hidden.float(), weight.float(), kernels), exact, strict=True):
        near(one, expected, 1e-5)
    if not max_z:  # logits that are rounded have their largest elsewhere
        for one, expected in zip(run(hidden, weight, kernels), exact, strict=True):
            near(one, expected, 2e-2)


@pytest.mark.parametrize("rotary", [Rotary(), Rotary(percent=0.5), Rotary(interleaved=True)], ids=str)
def test_rotation(rotary: Rotary):
    for heads in (4, 2):
        x, upstream = random(33, 2, heads, 16).requires_grad_(), random(33, 2, heads, 16)
        results = []
        for kernels in (TORCH, COMPILED):
            x.grad = None
            out = apply_rotary(x, rotary, kernels=kernels)
            out.backward(upstream)
            results.append((out.detach(), x.grad))
        for one, other in zip(*results, strict=True):
            near(one, other, 1e-2)


def test_swiglu():
    x, upstream = random(33, 2, 96).requires_grad_(), random(33, 2, 48)
    results = []
    for kernels in (Kernels(), Kernels(elementwise=COMPILED)):
        x.grad = None
        out = swiglu_of(kernels)(x)
        out.backward(upstream)
        results.append((out.detach(), x.grad))
    for one, other in zip(*results, strict=True):
        near(one, other, 2e-2)
