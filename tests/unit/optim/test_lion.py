"""Lion is its formula, whole or in flat slices; its state is one fp32 moment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.optim.lion import Lion
from tests.unit.optim.test_adamw import SHAPES, gradients, groups_of, parameters, ready, trained


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.0, 0.5)])
def test_it_is_its_formula(betas: tuple[float, float]):
    """Algorithm 2 of arXiv:2302.06675 in fp64, written out."""
    beta1, beta2 = betas
    ours = trained(lambda groups: ready(Lion(groups, 1e-2, betas)), (0.3, 0.0))
    for index, start in enumerate(parameters()):
        theta = start.detach().double()
        rate, decay = (1e-2, 0.3) if index < 2 else (3e-2, 0.0)
        momentum = torch.zeros_like(theta)
        for step in range(10):
            rate *= 0.9
            gradient = gradients(step)[index].double()
            update = torch.sign(beta1 * momentum + (1 - beta1) * gradient)
            theta = theta - rate * (update + decay * theta)
            momentum = beta2 * momentum + (1 - beta2) * gradient
            torch.testing.assert_close(ours[step][index].double(), theta, rtol=1e-6, atol=1e-6)


def test_a_zero_gradient_moves_only_by_the_decay():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = ready(Lion([weight], 0.5, weight_decay=0.1))
    weight.grad = torch.tensor([0.0, 2.0, -1e-30])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([0.95, 0.45, 1.45]))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_slices_of_the_flat_parameters_give_the_same_bits():
    """As the distributed optimizer cuts them, also through a parameter."""
    whole = flat(trained(lambda groups: ready(Lion(groups, 1e-2)), (0.1, 0.1))[-1])
    small, large = sum(torch.Size(shape).numel() for shape in SHAPES[:2]), flat(parameters()).numel()
    slices = []
    for begin, end in ((0, 13), (13, small), (small, large - 5), (large - 5, large)):
        piece = torch.nn.Parameter(flat(parameters())[begin:end].clone())
        optimizer = ready(Lion([piece], 1e-2 if end <= small else 3e-2, weight_decay=0.1))
        for step in range(10):
            optimizer.param_groups[0]["lr"] *= 0.9
            piece.grad = flat(gradients(step))[begin:end]
            optimizer.step()
        slices.append(piece.detach())
    assert torch.cat(slices).equal(whole)


def test_its_state_is_one_moment_from_the_start():
    tensors = parameters()
    optimizer = ready(Lion(groups_of(tensors, (0.1, 0.0)), 1e-2))
    assert [group["step"] for group in optimizer.param_groups] == [0, 0]
    tensors[0].grad = torch.ones_like(tensors[0])
    optimizer.step()
    optimizer.init_state()
    assert [group["step"] for group in optimizer.param_groups] == [1, 1]
    for index, (tensor, start) in enumerate(zip(tensors, parameters(), strict=True)):
        state = optimizer.state[tensor]
        assert set(state) == {"exp_avg"} and state["exp_avg"].dtype == torch.float32
        assert bool(state["exp_avg"].any()) is (index == 0) and tensor.equal(start) is (index != 0)


def test_saved_and_loaded_it_goes_on_bit_for_bit():
    whole = trained(lambda groups: ready(Lion(groups, 1e-2)), (0.1, 0.0))[-1]
    tensors = parameters()
    optimizer = ready(Lion(groups_of(tensors, (0.1, 0.0)), 1e-2))
    for step in range(10):
        if step == 4:
            saved = optimizer.state_dict()
            tensors = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]
            optimizer = ready(Lion(groups_of(tensors, (0.5, 0.5)), 1.0))
            optimizer.load_state_dict(saved)
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()
    assert all(a.equal(b) for a, b in zip(tensors, whole, strict=True))
