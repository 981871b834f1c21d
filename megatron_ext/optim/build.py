"""The one builder of optimizers: our update rule inside megatron-core's fp32, fp16/bf16 or distributed optimizer."""

from __future__ import annotations

from typing import Any, TypeAlias

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
from megatron_ext.optim.fused_adam import adam_of
from megatron_ext.optim.groups import parameter_groups
from megatron_ext.optim.lion import Lion
from megatron_ext.optim.muon import Muon, muon_settings
from megatron_ext.platform.kernels import choose_kernels

UpdateRule: TypeAlias = AdamW | SGD | Lion | Muon


def build_optimizer(run: RunConfig, chunks: list[DistributedDataParallel]) -> MegatronOptimizer:
    """Return megatron-core's optimizer over our update rule, its state allocated.

    Every rank calls it. A rank all of whose parameters are frozen has an optimizer over an empty group.

    Args:
        run: optimizer, precision, `--use-distributed-optimizer`.
        chunks: this rank's model chunks, wrapped in megatron-core's data parallelism.
    """
    core = optimizer_config(run)
    rule = _update_rule(run, parameter_groups(run, chunks))
    scaler = _grad_scaler(run)

    def init_state(optimizer: UpdateRule, _: OptimizerConfig | None = None) -> None:
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
            distributed_optimizer_instance_id=_instance_id(run),
        )
        # every rank of an instance holds a different slice of the gradients; the only instance is the world
        optimizer.grad_stats_parallel_group = parallel_state.get_intra_distributed_optimizer_instance_group()
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


def _instance_id(run: RunConfig) -> int:
    if run.parallel.num_distributed_optimizer_instances == 1:
        return 0
    return int(parallel_state.get_inter_distributed_optimizer_instance_group().rank())


def _update_rule(run: RunConfig, groups: list[dict[str, Any]]) -> UpdateRule:
    optim = run.optim
    if optim.optimizer == "sgd":
        return SGD(groups, lr=optim.lr, momentum=optim.sgd_momentum, weight_decay=optim.weight_decay)
    if optim.optimizer == "lion":
        return Lion(groups, optim.lr or 0.0, (optim.lion_beta1, optim.lion_beta2), optim.weight_decay)
    adamw = {
        "lr": optim.lr,
        "betas": (optim.adam_beta1, optim.adam_beta2),
        "eps": optim.adam_eps,
        "weight_decay": optim.weight_decay,
    }
    if optim.optimizer == "muon":
        return Muon(groups, muon_settings(run), parallel_state.get_tensor_model_parallel_group(), **adamw)
    device = "cuda" if any(parameter.is_cuda for group in groups for parameter in group["params"]) else "cpu"
    return adam_of(choose_kernels(device, run.parallel.transformer_impl).adam)(groups, **adamw)


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
