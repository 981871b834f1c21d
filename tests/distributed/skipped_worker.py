"""Trains in two processes, of which one makes a bad loss or gradient; asserts what must hold; see test_skipped.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MegatronOptimizer

from megatron_ext.optim.update import Update, update_or_skip
from megatron_ext.parallel.world import start_world, stop_model_parallel
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training import step as step_module
from megatron_ext.training.components import Components
from megatron_ext.training.forward import forward_step
from megatron_ext.training.metrics import TrainState
from tests.distributed.tiny import LAYOUTS, tiny_run
from tests.distributed.training import gathered_state, started, train_steps

PROCESSES, BAD_RANK = 2, 1
FLAGS = "--train-iters 9 --lr-warmup-iters 0"


def main(data: str) -> None:
    """Every layout of two processes, every second in bf16 without clipping; of each wrapper both come up."""
    with start_world(tiny_run("gpt2", FLAGS, PROCESSES, Path(data)), CpuPlatform()):
        stop_model_parallel()
        for number, layout in enumerate(LAYOUTS[PROCESSES].values()):
            flags = f"{FLAGS} {layout}" + (" --bf16 --clip-grad 0" if number % 2 else "")
            with started(tiny_run("gpt2", flags, PROCESSES, Path(data))) as parts:
                skip_and_go_on(parts, flags)
        for layout in ("dp2", "dp2 distopt"):
            flags = f"{FLAGS} {LAYOUTS[PROCESSES][layout]} --fp16 --initial-loss-scale 1024 --hysteresis 1"
            with started(tiny_run("gpt2", flags, PROCESSES, Path(data))) as parts:
                lower_the_scale_together(parts, layout)


def skip_and_go_on(parts: Components, flags: str) -> None:
    """One good step, four bad ones that change nothing (a norm weight, a matrix, a loss, all after the reduction), one
    good step."""
    state = TrainState()
    train_steps(parts, state, 1)
    before = gathered_state(parts, with_optimizer=True)
    for number, kind in enumerate(("layernorm.weight", "linear_fc1.weight", "loss", "reduced"), start=1):
        with made_bad(parts, kind):
            [result] = train_steps(parts, state, 1)
        assert result.skipped and result.is_nan, f"{flags}: rank {dist.get_rank()} made an update with a bad {kind}"
        assert state.skipped_in_a_row == state.nan_iterations == number
        after = gathered_state(parts, with_optimizer=True)
        different = [name for name in before if not np.array_equal(before[name], after[name])]
        assert not different and set(before) == set(after), f"{flags}, {kind}: {different} changed"
    [result] = train_steps(parts, state, 1)
    assert not result.skipped and state.skipped_in_a_row == 0
    assert any(not np.array_equal(before[name], value) for name, value in gathered_state(parts).items())


def lower_the_scale_together(parts: Components, layout: str) -> None:
    """Reduced gradients of one rank overflow: no rank makes the update, and both have the lower scale from then on."""
    state = TrainState()
    train_steps(parts, state, 1)
    before = gathered_state(parts, with_optimizer=True)
    with made_bad(parts, "reduced"):
        [result] = train_steps(parts, state, 1)
    assert result.skipped and result.loss_scale == 512.0, f"{layout}: rank {dist.get_rank()}: {result}"
    after = gathered_state(parts, with_optimizer=True)
    assert all(np.array_equal(before[name], after[name]) for name in before), layout
    [result] = train_steps(parts, state, 1)
    assert not result.skipped and result.loss_scale == 512.0


@contextmanager
def made_bad(parts: Components, kind: str) -> Iterator[None]:
    """On the bad rank alone a gradient holds a NaN, or the reported loss is infinite while its gradient is not.

    `reduced` makes its gradients bad when the others have got theirs already.
    """
    bad = dist.get_rank() == BAD_RANK
    weights = [p for model in parts.models for name, p in model.named_parameters() if name.endswith(kind)]
    hook = weights[0].register_hook(lambda gradient: gradient + math.nan) if bad and weights else None
    step_module.forward_step = forward_with_bad_report if bad and kind == "loss" else forward_step
    if bad and kind == "reduced":
        step_module.update_or_skip = update_with_bad_gradients
    try:
        yield
    finally:
        step_module.forward_step, step_module.update_or_skip = forward_step, update_or_skip
        if hook is not None:
            hook.remove()


def update_with_bad_gradients(optimizer: MegatronOptimizer, loss: float, *rest: object) -> Update:
    """As `update_or_skip`, with NaN in every gradient."""
    for parameter in (p for group in model_groups(optimizer) for p in group):
        parameter.main_grad.fill_(math.nan)
    return update_or_skip(optimizer, loss, *rest)


def model_groups(optimizer: MegatronOptimizer) -> list[list[torch.nn.Parameter]]:
    """The model's own parameters, by whatever name the wrapper keeps them."""
    if isinstance(optimizer, DistributedOptimizer):
        return [list(optimizer.model_param_gbuf_map)]
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        return [*optimizer.float16_groups, *optimizer.fp32_from_fp32_groups]
    return [group["params"] for group in optimizer.param_groups]


def forward_with_bad_report(*arguments: object) -> tuple:
    """As `forward_step`, with an infinite loss in the report."""
    output, loss_function = forward_step(*arguments)

    def losses(values: torch.Tensor) -> tuple:
        total, counted, report = loss_function(values)
        report["loss and tokens"][0] = math.inf
        return total, counted, report

    return output, losses
