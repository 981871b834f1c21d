"""Optimizer state in the shape of the model: the same tensors whatever the optimizer's wrapper and the layout.

Names: `optimizer.state.{fp32_param|exp_avg|exp_avg_sq|momentum_buffer}.{canonical parameter name}`. `fp32_param` is
there in fp16/bf16 training only; in fp32 it is the parameter itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
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
            if parameter in optimizer.model_param_group_index_map:
                owned = _owned_slice(optimizer, parameter)
                for name, tensor in tensors.items():
                    _shard(optimizer, parameter, name).copy_(tensor.flatten()[owned])
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
    """Describe the state of the distributed optimizer in the shape of the model.

    megatron-core 0.16.1 has a function for this, `sharded_param_state_fully_reshardable`; it reads a gathered buffer
    without padding at offsets with padding, and so mixes up parameters as soon as there are several buckets.
    """
    entries = {id(entry.data): entry for entry in _entries(model_state)}
    state: dict[Any, dict[str, Sharded]] = {index: {} for index, _ in enumerate(_buffer_order(optimizer))}
    for name in _state_names(optimizer):
        for index, (parameter, tensor) in enumerate(_whole_tensors(optimizer, name, is_loading)):
            state[index][name] = _like(entries[id(parameter)], name, tensor)
    return state


def _whole_tensors(
    optimizer: DistributedOptimizer, name: str, is_loading: bool
) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Return one state of every parameter, whole, fp32 on the CPU; collective over the data-parallel group.

    Each rank holds a slice of some parameters. The slices are put together by an integer sum of their bits with
    zeros elsewhere, which is exact.
    """
    whole = []
    for buffer in optimizer.buffers:
        parameters = list(buffer.param_index_map)
        sizes = [parameter.numel() for parameter in parameters]
        bits = torch.zeros(sum(sizes), dtype=torch.int32, device=parameters[0].device)
        for parameter, piece in zip(parameters, bits.split(sizes), strict=True) if not is_loading else ():
            if parameter in optimizer.model_param_group_index_map:
                piece[_owned_slice(optimizer, parameter)] = _shard(optimizer, parameter, name).view(torch.int32)
        if not is_loading:
            dist.all_reduce(bits, group=optimizer.data_parallel_group)
        pieces = bits.cpu().view(torch.float32).split(sizes)
        whole += [(parameter, piece.view(parameter.shape)) for parameter, piece in zip(parameters, pieces, strict=True)]
    return whole


def _owned_slice(optimizer: DistributedOptimizer, parameter: torch.nn.Parameter) -> slice:
    """Return which elements of the flat parameter this rank updates."""
    buffer, dtypes, bucket = optimizer.model_param_gbuf_map[parameter]
    owned = optimizer.gbuf_ranges[buffer][dtypes][bucket]["param_map"][parameter]["param"]
    return slice(owned.start, owned.end)


def _shard(optimizer: DistributedOptimizer, parameter: torch.nn.Parameter, name: str) -> torch.Tensor:
    """Return this rank's fp32 slice of one state of a parameter that it updates."""
    group, order = optimizer.model_param_group_index_map[parameter]
    main = optimizer.optimizer.param_groups[group]["params"][order]
    return main.detach() if name == "fp32_param" else optimizer.optimizer.state[main][name]


def _state_names(optimizer: MegatronOptimizer) -> tuple[str, ...]:
    half = optimizer.config.bf16 or optimizer.config.fp16
    return (*(("fp32_param",) if half else ()), *optimizer.optimizer.state_names)


def _main_and_moments(
    optimizer: MegatronOptimizer, parameter: torch.nn.Parameter
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    main = getattr(parameter, "main_param", parameter)
    return main, dict(optimizer.optimizer.state[main])


def _entries(model_state: ShardedStateDict) -> list[Sharded]:
    """The trained parameters of the model in a fixed order; tied copies on one rank come once."""
    unique = {id(entry.data): entry for entry in nested_values(model_state) if isinstance(entry, Sharded)}
    return [entry for entry in unique.values() if entry.data.requires_grad]


def _like(entry: Sharded, name: str, tensor: torch.Tensor) -> Sharded:
    key = f"optimizer.state.{name}.{entry.key}"
    if isinstance(entry, ShardedTensorFactory):
        return replace(entry, key=key, data=tensor)
    return replace(entry, key=key, data=tensor, dtype=tensor.dtype)


def _buffer_order(optimizer: DistributedOptimizer) -> list[torch.nn.Parameter]:
    return [parameter for buffer in optimizer.buffers for parameter in buffer.param_index_map]
