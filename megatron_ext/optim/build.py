"""The one builder of optimizers: our update rule inside megatron-core's fp32, fp16/bf16 or distributed optimizer."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.grad_scaler import ConstantGradScaler, DynamicGradScaler, MegatronGradScaler
from megatron.core.optimizer.optimizer import (
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
    MegatronOptimizer,
)

from megatron_ext.config import RunConfig
from megatron_ext.config.to_core import optimizer_config
from megatron_ext.optim.adamw import SGD, AdamW


def build_optimizer(run: RunConfig, chunks: list[DistributedDataParallel]) -> MegatronOptimizer:
    """Return megatron-core's optimizer over our update rule, its state allocated.

    Every rank calls it. Weights are decayed, biases and norm weights are not (Megatron-LM's rule).

    Args:
        run: optimizer, precision, `--use-distributed-optimizer`.
        chunks: this rank's model chunks, wrapped in megatron-core's data parallelism.
    """
    core = optimizer_config(run)
    rule = _update_rule(run, parameter_groups(run, chunks))
    scaler = _grad_scaler(run)

    def init_state(optimizer: AdamW | SGD, _: OptimizerConfig | None = None) -> None:
        optimizer.init_state()

    optimizer: MegatronOptimizer
    if run.parallel.use_distributed_optimizer:
        optimizer = DistributedOptimizer(
            rule,
            core,
            scaler,
            init_state,
            model_chunks=chunks,
            per_model_buffers={index: chunk.buffers for index, chunk in enumerate(chunks)},
            data_parallel_group=parallel_state.get_data_parallel_group(
                with_context_parallel=True, partial_data_parallel=True
            ),
            data_parallel_group_gloo=None,
            data_parallel_group_idx=parallel_state.get_model_parallel_group().rank(),
            distributed_optimizer_instance_id=0,
        )
        # every rank of the world holds a different slice of the gradients
        optimizer.grad_stats_parallel_group = torch.distributed.group.WORLD
    else:
        half = run.train.bf16 or run.train.fp16
        optimizer = (
            Float16OptimizerWithFloat16Params(rule, core, scaler, init_state)
            if half
            else FP32Optimizer(rule, core, init_state)
        )
        optimizer.grad_stats_parallel_group = parallel_state.get_model_parallel_group()
    optimizer.tp_group = parallel_state.get_tensor_model_parallel_group()
    optimizer.optimizer.init_state()
    return optimizer


def parameter_groups(run: RunConfig, chunks: list[DistributedDataParallel]) -> list[dict[str, Any]]:
    """Split this rank's parameters into decayed (matrices) and undecayed (vectors) groups.

    The keys besides `params` are those by which megatron-core tells groups apart.
    """
    decayed: list[torch.nn.Parameter] = []
    undecayed: list[torch.nn.Parameter] = []
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            group = undecayed if parameter.dim() == 1 or name.endswith(".bias") else decayed
            group.append(parameter)
    common = {"lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False, "default_config": True}
    return [
        {"params": parameters, "wd_mult": multiplier, "max_lr": run.optim.lr, "min_lr": run.optim.min_lr, **common}
        for parameters, multiplier in ((decayed, 1.0), (undecayed, 0.0))
        if parameters
    ]


def _update_rule(run: RunConfig, groups: list[dict[str, Any]]) -> AdamW | SGD:
    optim = run.optim
    if optim.optimizer == "sgd":
        return SGD(groups, lr=optim.lr, momentum=optim.sgd_momentum, weight_decay=optim.weight_decay)
    return AdamW(
        groups,
        lr=optim.lr,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
    )


def _grad_scaler(run: RunConfig) -> MegatronGradScaler | None:
    optim = run.optim
    if optim.loss_scale is not None:
        return ConstantGradScaler(optim.loss_scale)
    if not run.train.fp16:
        return None
    return DynamicGradScaler(
        initial_scale=optim.initial_loss_scale,
        min_scale=optim.min_loss_scale,
        growth_factor=2.0,
        backoff_factor=0.5,
        growth_interval=optim.loss_scale_window,
        hysteresis=optim.hysteresis,
    )
