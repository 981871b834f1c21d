"""Our update rules are torch's, step for step; what differs is where the step count and the first state are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_ext.optim.adamw import SGD, AdamW
from megatron_ext.optim.lion import Lion

SHAPES = [(7, 5), (11,), (1,), (2, 3, 4)]


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) * 10.0 ** (-step % 3) for shape in SHAPES]


def groups_of(tensors: list[torch.nn.Parameter], decays: tuple[float, float]) -> list[dict]:
    return [
        {"params": tensors[:2], "weight_decay": decays[0]},
        {"params": tensors[2:], "weight_decay": decays[1], "lr": 3e-2},
    ]


def trained(make: Callable[[list[dict]], torch.optim.Optimizer], decays: tuple[float, float]) -> list[list[Tensor]]:
    """The parameters after each of 10 steps; the rate moves, as under a schedule."""
    tensors = parameters()
    optimizer = make(groups_of(tensors, decays))
    history = []
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()
        history.append([tensor.detach().clone() for tensor in tensors])
    return history


def ready(optimizer: AdamW | SGD | Lion) -> AdamW | SGD | Lion:
    optimizer.init_state()
    return optimizer


@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.1, 0.0), (0.3, 0.01)])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
def test_adamw_is_torchs(betas: tuple[float, float], decays: tuple[float, float]):
    settings = {"lr": 1e-2, "betas": betas, "eps": 1e-6}
    ours = trained(lambda groups: ready(AdamW(groups, **settings)), decays)
    fused = trained(lambda groups: torch.optim.AdamW(groups, **settings, fused=True), decays)
    plain = trained(lambda groups: torch.optim.AdamW(groups, **settings, foreach=False, fused=False), decays)
    for step in range(10):
        for mine, theirs, slow in zip(ours[step], fused[step], plain[step], strict=True):
            assert mine.equal(theirs)
            torch.testing.assert_close(mine, slow, rtol=1e-6, atol=1e-6)


def test_adamw_is_its_formula():
    """Algorithm 2 of arXiv:1711.05101 in fp64, written out."""
    ours = trained(lambda groups: ready(AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6)), (0.1, 0.0))
    for index, start in enumerate(parameters()):
        theta = start.detach().double()
        rate, decay = (1e-2, 0.1) if index < 2 else (3e-2, 0.0)
        m = v = torch.zeros_like(theta)
        for step in range(10):
            rate *= 0.9
            gradient = gradients(step)[index].double()
            m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
            m_hat, v_hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
            theta = theta - rate * (m_hat / (v_hat.sqrt() + 1e-6) + decay * theta)
            torch.testing.assert_close(ours[step][index].double(), theta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.1, 0.01)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_from_the_first_step(momentum: float, decays: tuple[float, float]):
    ours = trained(lambda groups: ready(SGD(groups, lr=1e-2, momentum=momentum)), decays)
    theirs = trained(lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=momentum), decays)
    for step in range(10):
        assert all(a.equal(b) for a, b in zip(ours[step], theirs[step], strict=True)), step


@pytest.mark.parametrize(("rule", "names"), [(AdamW, {"exp_avg", "exp_avg_sq"}), (SGD, {"momentum_buffer"})])
class TestState:
    def test_it_exists_before_the_first_step(self, rule: type, names: set[str]):
        tensors = parameters()
        optimizer = ready(rule(groups_of(tensors, (0.1, 0.0)), lr=1e-2))
        for tensor in tensors:
            state = optimizer.state[tensor]
            assert set(state) == names == set(rule.state_names)
            assert all(value.shape == tensor.shape and value.count_nonzero() == 0 for value in state.values())

    def test_the_step_is_counted_in_the_group_and_only_there(self, rule: type, names: set[str]):
        tensors = parameters()
        optimizer = ready(rule(groups_of(tensors, (0.1, 0.0)), lr=1e-2))
        assert [group["step"] for group in optimizer.param_groups] == [0, 0]
        for _ in range(3):
            for tensor in tensors:
                tensor.grad = torch.ones_like(tensor)
            optimizer.step()
        assert [group["step"] for group in optimizer.param_groups] == [3, 3]
        assert all(set(optimizer.state[tensor]) == names for tensor in tensors)

    def test_asking_again_keeps_what_is_there(self, rule: type, names: set[str]):
        tensors = parameters()
        optimizer = ready(rule(groups_of(tensors, (0.1, 0.0)), lr=1e-2, **({} if rule is AdamW else {"momentum": 0.9})))
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        before = copy.deepcopy([optimizer.state[tensor] for tensor in tensors])
        optimizer.init_state()
        assert optimizer.param_groups[0]["step"] == 1
        for tensor, state in zip(tensors, before, strict=True):
            assert all(optimizer.state[tensor][name].equal(state[name]) for name in names)

    def test_a_parameter_without_gradient_stays(self, rule: type, names: set[str]):
        tensors = parameters()
        optimizer = ready(rule(groups_of(tensors, (0.1, 0.1)), lr=1e-2))
        tensors[0].grad = torch.ones_like(tensors[0])
        optimizer.step()
        for index, (tensor, start) in enumerate(zip(tensors, parameters(), strict=True)):
            assert tensor.equal(start) is (index != 0)

    def test_saved_and_loaded_it_goes_on_bit_for_bit(self, rule: type, names: set[str]):
        settings = {"lr": 1e-2} if rule is AdamW else {"lr": 1e-2, "momentum": 0.9}
        whole = trained(lambda groups: ready(rule(groups, **settings)), (0.1, 0.0))
        tensors = parameters()
        optimizer = ready(rule(groups_of(tensors, (0.1, 0.0)), **settings))
        for step in range(10):
            if step == 4:
                saved = copy.deepcopy(optimizer.state_dict())
                tensors = [torch.nn.Parameter(tensor.detach().clone()) for tensor in tensors]
                optimizer = ready(rule(groups_of(tensors, (0.1, 0.0)), **settings))
                optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            for tensor, gradient in zip(tensors, gradients(step), strict=True):
                tensor.grad = gradient
            optimizer.step()
            assert all(a.equal(b) for a, b in zip(tensors, whole[step], strict=True)), step
