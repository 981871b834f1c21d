"""One optimizer step: forward and backward over all micro-batches, reduce, clip, update."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate

from megatron_ext import log
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.forward import Batch, forward_step
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.schedule import set_rates

Readers = list[Iterator[Batch] | None]
"""One reader per model chunk of this rank; None where the chunk reads no data."""

LossAndTokens = tuple[float, float]
"""Loss summed over counted tokens, and how many those are; divided only where the last batch has been added."""


def train_step(parts: Components, state: TrainState, readers: Readers) -> StepResult:
    """Train on the next global batch. Collective over all ranks.

    A micro-batch without any learned token weighs nothing. A global batch without any leaves weights and optimizer
    as they are: its iteration counts as skipped, with loss 0 and a warning.

    Args:
        parts: model, optimizer, schedule.
        state: where the run stands before this step; not changed.
        readers: the training micro-batches.
    """
    started = time.perf_counter()
    train = parts.run.train
    global_batch_size = parts.run.global_batch_size_at(state.consumed_samples)
    seed_step(parts.world, train.seed, state.iteration)
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
    parts.optimizer.zero_grad()
    rate = set_rates(parts.optimizer.param_groups, parts.schedule, state.schedule_step)
    loss_sum, counted_tokens = forward_backward(parts, readers, global_batch_size, forward_only=False)
    if counted_tokens:
        updated, grad_norm, num_zeros = parts.optimizer.step()
    else:
        log.warn(
            f"iteration {state.iteration + 1} has no learned token in its {global_batch_size} samples: update skipped"
        )
        updated, grad_norm, num_zeros = False, None, None
    return StepResult(
        lm_loss=loss_sum / max(counted_tokens, 1.0),
        learning_rate=rate,
        global_batch_size=global_batch_size,
        num_tokens=global_batch_size * train.seq_length,
        seconds=time.perf_counter() - started,
        grad_norm=None if grad_norm is None else float(grad_norm),
        loss_scale=parts.optimizer.get_loss_scale().item() if train.fp16 else None,
        skipped=not updated,
        params_norm=parameters_norm(parts) if parts.run.logging.log_params_norm else None,
        num_zeros=None if num_zeros is None else int(num_zeros),
    )


def forward_backward(parts: Components, readers: Readers, global_batch_size: int, forward_only: bool) -> LossAndTokens:
    """Run one global batch through the pipeline and return its summed loss and counted tokens, on every rank.

    Collective over all ranks. With `forward_only` no gradients are computed.
    """
    train = parts.run.train
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=readers if len(readers) > 1 else readers[0],
        model=parts.chunks if len(parts.chunks) > 1 else parts.chunks[0],
        num_microbatches=global_batch_size // (train.micro_batch_size * parts.run.data_parallel_size),
        seq_length=train.seq_length,
        micro_batch_size=train.micro_batch_size,
        forward_only=forward_only,
    )
    return sum_reports(reports, parts.world)


def sum_reports(reports: list[dict[str, torch.Tensor]], world: World) -> LossAndTokens:
    """Return summed loss and counted tokens of all micro-batches and data-parallel ranks; the same on every rank."""
    total = torch.zeros(2, dtype=torch.float64, device=world.device)
    for report in reports:
        total += report["loss and tokens"]
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if world.grid.pp_size > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(total, source, group=parallel_state.get_pipeline_model_parallel_group())
    loss, counted = total.tolist()
    return loss, counted


def seed_step(world: World, seed: int, iteration: int) -> None:
    """Seed dropout for one iteration as a function of (seed, iteration, place in the grid); rank-local.

    So a resumed run drops what the uninterrupted one drops (law L2) and no generator state is ever saved. Ranks of
    one tensor-parallel group share the default generator and have their own tensor-parallel one, as in Megatron-LM.
    """
    # places 1009 apart, because megatron-core adds the tensor-parallel rank
    place = (world.at.pp_rank * 10_007 + world.at.dp_rank) * 1009
    mixed = (seed * 1_000_003 + iteration) * 1_000_003 + place
    step_seed = mixed % (2**31 - 1)
    torch.manual_seed(step_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(step_seed)


@torch.no_grad()
def parameters_norm(parts: Components) -> float:
    """Return the L2 norm of all parameters, each counted once; collective over the model-parallel group."""
    total = torch.zeros((), dtype=torch.float64, device=parts.world.device)
    for model in parts.models:
        for parameter in model.parameters():
            if param_is_not_tensor_parallel_duplicate(parameter) and not getattr(parameter, "shared", False):
                total += parameter.detach().double().square().sum()
    dist.all_reduce(total, group=parallel_state.get_model_parallel_group())
    return total.sqrt().item()
