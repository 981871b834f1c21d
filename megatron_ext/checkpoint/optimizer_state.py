"""Optimizer state in the shape of the model: the same tensors whatever the optimizer's wrapper and the layout.

Names: `optimizer.state.{fp32_param|exp_avg|exp_avg_sq|momentum_buffer}.{canonical parameter name}`. `fp32_param` is
there in fp16/bf16 training only; in fp32 it is the parameter itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedStateDict, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer

Sharded: TypeAlias = ShardedTensor | ShardedTensorFactory


def sharded_optimizer_state(
    optimizer: MegatronOptimizer, model_state: ShardedStateDict, is_loading: bool
) -> dict[Any, dict[str, Sharded]]:
    """Return the optimizer's tensors as megatron-core shards the model's; collective over the data-parallel group.

    Args:
        optimizer: built by `optim.build`, its state allocated.
        model_state: the sharded state of this rank's model chunks; its `data` are the parameters.
        is_loading: the tensors are only targets of a load, so the distributed optimizer need not gather them.
    """
    if isinstance(optimizer, DistributedOptimizer):
        return _of_distributed(optimizer, model_state, is_loading)
    state = {}
    for index, entry in enumerate(_entries(model_state)):
        main, moments = _main_and_moments(optimizer, entry.data)
        named = dict(moments) if main is entry.data else {"fp32_param": main, **moments}
        state[index] = {name: _like(entry, name, tensor) for name, tensor in named.items()}
    return state


@torch.no_grad()
def load_optimizer_state(
    optimizer: MegatronOptimizer, model_state: ShardedStateDict, loaded: dict[Any, dict[str, torch.Tensor]]
) -> None:
    """Copy loaded tensors into the optimizer; call it after the model's parameters have been loaded. Rank-local.

    Args:
        optimizer: the optimizer whose state was described by `sharded_optimizer_state`.
        model_state: as given there.
        loaded: what `load_tensors` made of it.
    """
    if isinstance(optimizer, DistributedOptimizer):
        for parameter, tensors in zip(_buffer_order(optimizer), loaded.values(), strict=True):
            tensors.setdefault("fp32_param", parameter.detach().float())
        optimizer.load_parameter_state_from_fully_reshardable(loaded)
        return
    for index, entry in enumerate(_entries(model_state)):
        main, moments = _main_and_moments(optimizer, entry.data)
        for name, tensor in loaded[index].items():
            (main if name == "fp32_param" else moments[name]).copy_(tensor)


def optimizer_step(optimizer: MegatronOptimizer) -> int:
    """Return how many updates the optimizer has made."""
    return int(optimizer.optimizer.param_groups[0]["step"])


def set_optimizer_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Set the number of updates made (Adam's bias correction)."""
    for group in optimizer.optimizer.param_groups:
        group["step"] = step


def scaler_state(optimizer: MegatronOptimizer) -> dict[str, float] | None:
    """Return the dynamic loss scaler's numbers; None where there is no scaler."""
    scaler = getattr(optimizer, "grad_scaler", None)
    if scaler is None:
        return None
    return {name: float(value) for name, value in scaler.state_dict().items()}


def set_scaler_state(optimizer: MegatronOptimizer, saved: dict[str, float] | None) -> None:
    """Give the loss scaler its saved numbers back; a run without a scaler ignores them."""
    scaler = getattr(optimizer, "grad_scaler", None)
    if scaler is None or not saved:
        return
    state = {name: int(value) for name, value in saved.items() if name != "scale"}
    scaler.load_state_dict({**state, "scale": torch.tensor([saved["scale"]], dtype=torch.float32)})


def _of_distributed(
    optimizer: DistributedOptimizer, model_state: ShardedStateDict, is_loading: bool
) -> dict[Any, dict[str, Sharded]]:
    gathered = optimizer.sharded_param_state_fully_reshardable(model_state, is_loading, metadata={})
    half = optimizer.config.bf16 or optimizer.config.fp16
    state = {}
    for index, tensors in gathered.items():
        main = tensors.pop("param")
        if half:
            key = main.key.replace("optimizer.state.param.", "optimizer.state.fp32_param.", 1)
            tensors["fp32_param"] = replace(main, key=key)
        state[index] = tensors
    return state


def _main_and_moments(
    optimizer: MegatronOptimizer, parameter: torch.nn.Parameter
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    main = getattr(parameter, "main_param", parameter)
    return main, {name: optimizer.optimizer.state[main][name] for name in optimizer.optimizer.state_names}


def _entries(model_state: ShardedStateDict) -> list[Sharded]:
    """The model's parameters in a fixed order; tied copies on one rank come once."""
    unique = {id(entry.data): entry for entry in nested_values(model_state) if isinstance(entry, Sharded)}
    return list(unique.values())


def _like(entry: Sharded, name: str, tensor: torch.Tensor) -> Sharded:
    key = f"optimizer.state.{name}.{entry.key}"
    if isinstance(entry, ShardedTensorFactory):
        return replace(entry, key=key, data=tensor)
    return replace(entry, key=key, data=tensor, dtype=tensor.dtype)


def _buffer_order(optimizer: DistributedOptimizer) -> list[torch.nn.Parameter]:
    return [parameter for buffer in optimizer.buffers for parameter in buffer.param_index_map]
