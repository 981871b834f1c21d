"""The built optimizers train alike where they must, decay what they should, and skip what overflows."""

from __future__ import annotations

import itertools

import pytest
import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.grad_scaler import ConstantGradScaler, DynamicGradScaler
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

from megatron_ext.config import RunConfig, check_rules
from megatron_ext.errors import ConfigError
from megatron_ext.optim.adamw import SGD, AdamW
from megatron_ext.optim.groups import parameter_groups
from megatron_ext.optim.lion import Lion
from megatron_ext.optim.muon import Muon
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import train_step
from tests.unit.tiny import TokenView, tiny_components, tiny_run


def train(parts: Components, steps: int) -> list[StepResult]:
    state, results = TrainState(), []
    with open_readers(parts, parts.datasets.train, 0, parts.run.global_batch_size_at) as readers:
        for _ in range(steps):
            results.append(train_step(parts, state, readers))
            state.advance(results[-1])
    return results


def weights(parts: Components) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parts.models[0].parameters()]


def trained(run: RunConfig, world: World, steps: int = 5) -> tuple[list[StepResult], list[torch.Tensor]]:
    parts = tiny_components(run, world)
    return train(parts, steps), weights(parts)


@pytest.mark.parametrize(
    ("values", "wrapper", "rule"),
    [
        ({}, FP32Optimizer, AdamW),
        ({"optimizer": "sgd"}, FP32Optimizer, SGD),
        ({"bf16": True}, Float16OptimizerWithFloat16Params, AdamW),
        ({"fp16": True}, Float16OptimizerWithFloat16Params, AdamW),
        ({"use_distributed_optimizer": True}, DistributedOptimizer, AdamW),
        ({"use_distributed_optimizer": True, "bf16": True}, DistributedOptimizer, AdamW),
        ({"optimizer": "lion"}, FP32Optimizer, Lion),
        ({"optimizer": "lion", "fp16": True}, Float16OptimizerWithFloat16Params, Lion),
        ({"optimizer": "lion", "use_distributed_optimizer": True, "bf16": True}, DistributedOptimizer, Lion),
        ({"optimizer": "muon"}, FP32Optimizer, Muon),
        ({"optimizer": "muon", "bf16": True}, Float16OptimizerWithFloat16Params, Muon),
    ],
)
def test_precision_and_sharding_choose_the_wrapper(values: dict, wrapper: type, rule: type, world: World):
    optimizer = tiny_components(tiny_run(**values), world).optimizer
    assert type(optimizer) is wrapper and type(optimizer.optimizer) is rule


def test_the_settings_reach_the_rule(world: World):
    values = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_eps": 1e-5, "lr": 0.25}
    for group in tiny_components(tiny_run(**values), world).optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"], group["step"]) == ((0.8, 0.9), 1e-5, 0.25, 0)
    sgd = tiny_components(tiny_run(optimizer="sgd", sgd_momentum=0.7), world).optimizer
    assert {group["momentum"] for group in sgd.param_groups} == {0.7}
    lion = tiny_components(tiny_run(optimizer="lion", lion_beta1=0.7, lion_beta2=0.8), world).optimizer
    assert {group["betas"] for group in lion.param_groups} == {(0.7, 0.8)}


@pytest.mark.parametrize("architecture", ["llama", "megatron_default"])
def test_matrices_decay_and_vectors_do_not(architecture: str, world: World):
    parts = tiny_components(tiny_run(architecture), world)
    groups = {group["wd_mult"]: group["params"] for group in parameter_groups(parts.run, parts.chunks)}
    named = {id(parameter): name for name, parameter in parts.models[0].named_parameters()}
    decayed, undecayed = ({named[id(parameter)] for parameter in groups[multiplier]} for multiplier in (1.0, 0.0))
    assert decayed.isdisjoint(undecayed) and decayed | undecayed == set(named.values())
    assert undecayed == {name for name in named.values() if "norm" in name or name.endswith(".bias")}


def test_decay_alone_shrinks_matrices_and_leaves_vectors(world: World):
    """A step with zero gradients: theta * (1 - lr * wd), or nothing."""
    parts = tiny_components(tiny_run("megatron_default", lr=0.5, weight_decay=0.1), world)
    before = weights(parts)
    parts.optimizer.zero_grad()
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
    for group in parts.optimizer.param_groups:
        group["weight_decay"] = 0.1 * group["wd_mult"]
    parts.optimizer.step()
    for old, new in zip(before, weights(parts), strict=True):
        torch.testing.assert_close(new, old * 0.95 if old.dim() == 2 else old)


@pytest.mark.parametrize(
    "values",
    [{}, {"bf16": True}, {"fp16": True, "loss_scale": 128.0}, {"optimizer": "lion", "lr": 1e-3}],
    ids=str,
)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_distributed_optimizer_of_one_rank_is_the_plain_one(clip: float, values: dict, world: World):
    """Bit for bit, but for the gradient norm, whose sum has another order."""
    plain, plain_weights = trained(tiny_run(**values, clip_grad=clip), world)
    sharded, sharded_weights = trained(tiny_run(**values, clip_grad=clip, use_distributed_optimizer=True), world)
    if clip == 0.0:
        assert [r.lm_loss for r in sharded] == [r.lm_loss for r in plain]
        assert all(a.equal(b) for a, b in zip(sharded_weights, plain_weights, strict=True))
    assert [r.lm_loss for r in sharded] == pytest.approx([r.lm_loss for r in plain], rel=1e-6 if not values else 1e-4)
    if clip:
        assert [r.grad_norm for r in sharded] == pytest.approx(
            [r.grad_norm for r in plain], rel=1e-5 if not values else 1e-2
        )


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_sgd_and_muon_with_the_distributed_optimizer_are_refused_before_work_starts(optimizer: str):
    """megatron-core's distributed optimizer asserts that its rule is Adam, after all groups have started."""
    run = tiny_run(optimizer=optimizer, data_path=("data",), tokenizer_type="NullTokenizer", vocab_size=99)
    check_rules(run)
    with pytest.raises(ConfigError, match="--use-distributed-optimizer"):
        check_rules(run.with_values(use_distributed_optimizer=True))


@pytest.mark.parametrize("values", [{"bf16": True}, {"fp16": True, "loss_scale": 1024.0}])
def test_half_precision_follows_fp32(values: dict, world: World):
    exact, _ = trained(tiny_run(lr=1e-3), world, 8)
    rounded, _ = trained(tiny_run(lr=1e-3, **values), world, 8)
    for a, b in zip(exact, rounded, strict=True):
        assert b.lm_loss == pytest.approx(a.lm_loss, abs=1e-2)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=3e-2)


def test_half_precision_keeps_updates_smaller_than_its_own_rounding(world: World):
    """The master weights are fp32: 20 updates of 3e-4 move a bf16 weight of 1, one alone cannot."""
    parts = tiny_components(tiny_run(bf16=True, lr=3e-4, weight_decay=0.0, clip_grad=0.0), world)
    norm = parts.models[0].decoder.final_layernorm.weight
    train(parts, 1)
    assert (norm == 1.0).all()
    train(parts, 20)
    assert (norm != 1.0).any()


def test_the_constant_loss_scale_changes_no_bit_when_it_is_a_power_of_two(world: World):
    plain, plain_weights = trained(tiny_run(), world)
    scaled, scaled_weights = trained(tiny_run(loss_scale=256.0), world)
    assert [r.lm_loss for r in scaled] == [r.lm_loss for r in plain]
    for a, b in zip(scaled_weights, plain_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_loss_scale_is_constant_dynamic_or_absent(world: World):
    def scaler(**values: object) -> object:
        return tiny_components(tiny_run(**values), world).optimizer.grad_scaler

    assert type(scaler(fp16=True)) is DynamicGradScaler
    assert type(scaler(fp16=True, loss_scale=8.0)) is ConstantGradScaler
    assert scaler(bf16=True) is None


def test_an_overflow_skips_the_update_and_lowers_the_scale_until_it_fits(world: World):
    values = {"initial_loss_scale": 2.0**40, "hysteresis": 1, "loss_scale_window": 1000}
    parts = tiny_components(tiny_run(fp16=True, **values), world)
    before = weights(parts)
    [first] = train(parts, 1)
    assert first.skipped and first.loss_scale == 2.0**39
    assert all(a.equal(b) for a, b in zip(weights(parts), before, strict=True))
    assert {group["step"] for group in parts.optimizer.optimizer.param_groups} == {0}
    results = train(parts, 40)
    taken = [result.skipped for result in results].index(False)
    assert [result.loss_scale for result in results[:taken]] == [2.0 ** (38 - i) for i in range(taken)]
    assert results[taken].loss_scale == results[taken - 1].loss_scale
    assert not all(a.equal(b) for a, b in zip(weights(parts), before, strict=True))


def test_hysteresis_forgives_the_first_overflow(world: World):
    values = {"initial_loss_scale": 2.0**40, "hysteresis": 2}
    results, _ = trained(tiny_run(fp16=True, **values), world, 3)
    assert [(r.skipped, r.loss_scale) for r in results] == [(True, 2.0**40), (True, 2.0**39), (True, 2.0**38)]


def test_the_scale_grows_after_a_window_of_good_steps(world: World):
    values = {"initial_loss_scale": 16.0, "loss_scale_window": 2}
    results, _ = trained(tiny_run(fp16=True, **values), world, 5)
    assert [r.loss_scale for r in results] == [16.0, 32.0, 32.0, 64.0, 64.0]


def test_a_skipped_step_does_not_move_the_schedule(world: World):
    parts = tiny_components(tiny_run(fp16=True, initial_loss_scale=2.0**60, lr_warmup_iters=10), world)
    state = TrainState()
    with open_readers(parts, TokenView(), 0, parts.run.global_batch_size_at) as readers:
        for _ in range(3):
            result = train_step(parts, state, readers)
            state.advance(result)
            assert result.skipped and result.learning_rate == 0.0
    assert (state.skipped_iterations, state.consumed_samples, state.schedule_step) == (3, 12, 0)


@pytest.mark.parametrize("clip", [0.0, 0.1, 1.0, 100.0])
def test_gradients_are_clipped_to_their_global_norm(clip: float, world: World):
    """With SGD of rate 1 and no momentum the update is the clipped gradient."""
    values = {"optimizer": "sgd", "sgd_momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "clip_grad": clip}
    parts = tiny_components(tiny_run(**values), world)
    before = weights(parts)
    [result] = train(parts, 1)
    update = torch.cat([(a - b).flatten() for a, b in zip(before, weights(parts), strict=True)]).norm().item()
    free = tiny_components(tiny_run(**{**values, "clip_grad": 1e9}), world)
    [unclipped] = train(free, 1)
    norm = unclipped.grad_norm
    assert 0.1 < norm < 100.0
    expected = norm if clip == 0.0 else min(norm, clip)
    assert update == pytest.approx(expected, rel=1e-4)
    assert clip == 0.0 or result.grad_norm == pytest.approx(norm, rel=1e-6)


def test_the_state_of_every_parameter_exists_before_the_first_step(world: World):
    for values in itertools.product([{}, {"bf16": True}], [{}, {"use_distributed_optimizer": True}]):
        optimizer = tiny_components(tiny_run(**values[0], **values[1]), world).optimizer.optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                assert set(optimizer.state[parameter]) == {"exp_avg", "exp_avg_sq"}
                assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32
