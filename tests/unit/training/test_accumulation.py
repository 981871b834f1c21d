"""Our kernel adds the gradients of micro-batches to the same bits as megatron-core's own addition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.world import World
from megatron_ext.platform.cpu_kernels import CPU_KERNELS
from megatron_ext.training import accumulation, components
from tests.unit.tiny import tiny_components, tiny_run
from tests.unit.training.test_step import train

pytestmark = pytest.mark.skipif(CPU_KERNELS is None, reason="the kernels are not built, or no AVX-512 with bf16")
STEPS, MICRO_BATCHES = 3, 2


class Counted:
    """The kernel, and how many numbers it added in all."""

    numbers = 0

    def add(self, total: int, share: int, count: int) -> None:
        self.numbers += count
        CPU_KERNELS.add(total, share, count)


def trained(world: World, architecture: str, **values: object) -> tuple[list[float], list[Tensor], int]:
    """Norms of the gradients of each step, the gradients of the last one, and how many parameters there are."""
    parts = tiny_components(tiny_run(architecture, **{"bf16": True, **values}), world)
    norms = [result.grad_norm for result in train(parts, STEPS)]
    buffers = [buffer.grad_data.clone() for chunk in parts.chunks for buffer in chunk.buffers]
    return norms, buffers, sum(parameter.numel() for parameter in parts.models[0].parameters())


@pytest.mark.parametrize("layout", [{}, {"deterministic_data_parallel": True}], ids=["plain", "ordered"])
@pytest.mark.parametrize("architecture", ["llama", "partial_rotary_tied"])
def test_the_sums_are_megatron_cores_to_the_last_bit(
    architecture: str, layout: dict, world: World, monkeypatch: pytest.MonkeyPatch
):
    counted = Counted()
    monkeypatch.setattr(accumulation, "CPU_KERNELS", counted)
    norms, buffers, parameters = trained(world, architecture, **layout)
    shared = 128 * 32 if architecture == "partial_rotary_tied" else 0  # that megatron-core adds by itself
    assert counted.numbers == STEPS * MICRO_BATCHES * (parameters - shared)
    with monkeypatch.context() as patch:
        patch.setattr(components, "add_gradients_natively", lambda chunk: None)
        expected_norms, expected, _ = trained(world, architecture, **layout)
    assert norms == expected_norms
    assert all(one.equal(other) and other.any() for one, other in zip(buffers, expected, strict=True))


@pytest.mark.parametrize("values", [{"bf16": False}, {"transformer_impl": "local"}])
def test_it_is_not_there_where_it_does_not_fit_or_is_not_wanted(
    values: dict, world: World, monkeypatch: pytest.MonkeyPatch
):
    counted = Counted()
    monkeypatch.setattr(accumulation, "CPU_KERNELS", counted)
    norms, *_ = trained(world, "llama", **values)
    assert counted.numbers == 0 and all(0 < norm < float("inf") for norm in norms)


def test_a_gradient_that_does_not_fit_is_left_to_megatron_core():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.main_grad, parameter.grad = torch.ones(3), torch.ones(3)
    accumulation._add(parameter)
    assert parameter.main_grad.tolist() == [1, 1, 1] and parameter.grad_added_to_main_grad is False
