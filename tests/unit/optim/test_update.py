"""A loss or gradient that is no number leaves everything as it was; any other goes through clipping as before."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32, get_grad_norm_fp32

from megatron_ext.optim import update
from megatron_ext.optim.update import gradient_norm, scale_gradients, update_or_skip, whole_gradient_norm
from megatron_ext.parallel.world import World
from megatron_ext.training import step as step_module
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.distributed.skipped_worker import forward_with_bad_report
from tests.unit.tiny import TokenView, tiny_components, tiny_run

WRAPPERS = [
    {},
    {"bf16": True},
    {"use_distributed_optimizer": True},
    {"use_distributed_optimizer": True, "bf16": True},
    {"optimizer": "sgd"},
    {"optimizer": "muon"},
    {"clip_grad": 0.0},
    {"deterministic_data_parallel": True},
    {"deterministic_data_parallel": True, "use_distributed_optimizer": True, "bf16": True},
]


def train(parts: Components, steps: int, state: TrainState) -> list[StepResult]:
    results = []
    with open_readers(parts, TokenView(), state.consumed_samples, parts.run.global_batch_size_at) as readers:
        for _ in range(steps):
            results.append(train_step(parts, state, readers))
            state.advance(results[-1])
    return results


def everything(parts: Components) -> list[torch.Tensor]:
    """Weights, main weights and moments, and the step counts."""
    inner = parts.optimizer.optimizer
    tensors = [parameter.detach() for model in parts.models for parameter in model.parameters()]
    for group in inner.param_groups:
        tensors += [torch.tensor(group["step"]), *(parameter.detach() for parameter in group["params"])]
        tensors += [value for parameter in group["params"] for value in inner.state[parameter].values()]
    return [tensor.clone() for tensor in tensors]


def unchanged(parts: Components, before: list[torch.Tensor]) -> bool:
    return all(new.equal(old) for new, old in zip(everything(parts), before, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("values", WRAPPERS, ids=str)
def test_one_bad_element_of_one_gradient_skips_the_update(values: dict, bad: float, world: World, capsys):
    parts, state = tiny_components(tiny_run(**values), world), TrainState()
    train(parts, 2, state)
    before = everything(parts)
    norm = parts.models[0].decoder.final_layernorm.weight

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[3] = bad
        return gradient

    hook = norm.register_hook(poison)
    [skipped] = train(parts, 1, state)
    hook.remove()
    assert skipped.skipped and skipped.is_nan and math.isfinite(skipped.lm_loss)
    assert unchanged(parts, before)
    assert "iteration 3: loss" in capsys.readouterr().err
    assert (state.skipped_iterations, state.nan_iterations, state.skipped_in_a_row) == (1, 1, 1)
    assert (state.consumed_samples, state.schedule_step) == (12, 8)
    [after] = train(parts, 1, state)
    assert not after.skipped and state.skipped_in_a_row == 0 and not unchanged(parts, before)


@pytest.mark.parametrize("values", [{}, {"fp16": True, "loss_scale": 64.0}], ids=str)
def test_a_bad_loss_with_good_gradients_skips_the_update(values: dict, world: World, capsys, monkeypatch):
    """As of a label whose logit is minus infinity."""
    parts, state = tiny_components(tiny_run(**values), world), TrainState()
    before = everything(parts)

    monkeypatch.setattr(step_module, "forward_step", forward_with_bad_report)
    [result] = train(parts, 1, state)
    assert result.skipped and result.lm_loss == math.inf and unchanged(parts, before)
    assert "rank 0: the loss of its own micro-batches is inf" in capsys.readouterr().out


def test_an_overflow_of_the_scaled_gradient_is_no_nan_iteration(world: World, capsys):
    parts, state = tiny_components(tiny_run(fp16=True, initial_loss_scale=2.0**60), world), TrainState()
    [result] = train(parts, 1, state)
    assert result.skipped and not result.is_nan and result.grad_norm is None
    assert (state.nan_iterations, state.skipped_in_a_row) == (0, 1)
    assert "gradient norm" not in capsys.readouterr().err


def test_the_norm_is_also_known_without_clipping(world: World):
    free, clipped = (tiny_components(tiny_run(clip_grad=clip), world) for clip in (0.0, 1e9))
    norms = [train(parts, 1, TrainState())[0].grad_norm for parts in (free, clipped)]
    assert norms[0] == norms[1] > 0.0


def test_gradients_outside_of_the_norm_are_looked_at(world: World):
    """Copies of a parameter on further tensor-parallel ranks are not counted, but must be numbers."""
    parts = tiny_components(tiny_run(), world)
    weight = parts.models[0].decoder.final_layernorm.weight
    for parameter in parts.models[0].parameters():
        parameter.main_grad.fill_(0.5)
    parts.optimizer.prepare_grads()
    whole = gradient_norm(parts.optimizer, loss_is_finite=True)
    weight.shared = True
    without = gradient_norm(parts.optimizer, loss_is_finite=True)
    assert without == pytest.approx(math.sqrt(whole**2 - 0.25 * weight.numel()), rel=1e-6)
    weight.main_grad[0] = math.nan
    assert math.isnan(gradient_norm(parts.optimizer, loss_is_finite=True))
    weight.main_grad[0] = 0.5
    assert math.isnan(gradient_norm(parts.optimizer, loss_is_finite=False))
    before = everything(parts)
    assert not update_or_skip(parts.optimizer, math.nan).made and unchanged(parts, before)
    assert update_or_skip(parts.optimizer, 1.0).made and not unchanged(parts, before)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bf16": True, "use_distributed_optimizer": True},
        {"fp16": True, "loss_scale": 4.0},
        {
            "fp16": True,
            "loss_scale": 4.0,
            "accumulate_allreduce_grads_in_fp32": True,
            "use_distributed_optimizer": True,
        },
    ],
    ids=str,
)
def test_the_norm_of_whole_gradients_is_that_of_the_prepared_ones(values: dict, world: World):
    parts = tiny_components(tiny_run("megatron_default", **values), world)
    parameters = list(parts.models[0].parameters())
    for number, parameter in enumerate(parameters):
        parameter.main_grad.copy_(torch.linspace(-1, 2 + number, parameter.numel()).view(parameter.shape))
    parameters[-1].shared = True
    squares = [parameter.main_grad.double().square().sum() for parameter in parameters[:-1]]
    scale = values.get("loss_scale", 1.0)
    expected = math.sqrt(sum(squares)) / scale
    assert whole_gradient_norm(parts.optimizer, parameters, True) == pytest.approx(expected, rel=1e-6)
    update = update_or_skip(parts.optimizer, 1.0, parameters)
    assert update.made and update.grad_norm == pytest.approx(expected, rel=1e-6)
    parameters[-1].main_grad[0] = math.inf
    assert math.isnan(whole_gradient_norm(parts.optimizer, parameters, True))
    parameters[-1].main_grad[0] = 0.0
    assert math.isnan(whole_gradient_norm(parts.optimizer, parameters, False))


def test_norm_and_clipping_are_megatron_cores_bit_for_bit(world: World):
    """On a GPU without Apex and Transformer Engine megatron-core's own would wait for every single gradient."""
    optimizer = tiny_components(tiny_run(), world).optimizer
    parameters, group = optimizer.get_parameters(), optimizer.get_grad_stats_parallel_group()
    gradients = [torch.randn_like(parameter) for parameter in parameters]

    def set_gradients() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()

    set_gradients()
    norm = gradient_norm(optimizer, loss_is_finite=True)
    assert norm == get_grad_norm_fp32(optimizer.get_main_grads_for_grad_norm(), grad_stats_parallel_group=group)
    scale_gradients(optimizer, 0.5 / (norm + 1e-6))
    ours = [parameter.grad for parameter in parameters]
    set_gradients()
    clip_grad_by_total_norm_fp32(parameters, 0.5, norm)
    assert all(torch.equal(mine, parameter.grad) for mine, parameter in zip(ours, parameters, strict=True))


def test_a_rank_without_parameters_clips_nothing(world: World, monkeypatch):
    """As a pipeline stage that is frozen whole; kernels of GPUs refuse an empty list."""
    parts = tiny_components(tiny_run(clip_grad=1e-3), world)
    parts.optimizer.optimizer.param_groups = [
        {**group, "params": []} for group in parts.optimizer.optimizer.param_groups
    ]
    monkeypatch.setattr(torch, "_foreach_mul_", lambda *_: pytest.fail("called with nothing to clip"))
    monkeypatch.setattr(update, "gradient_norm", lambda *_: 7.0)
    assert update_or_skip(parts.optimizer, 1.0).made
