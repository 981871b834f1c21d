"""One optimizer step: forward and backward over all micro-batches, reduce, clip, update."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate

from megatron_ext import log
from megatron_ext.optim.update import Update, update_or_skip
from megatron_ext.parallel.ordered import OrderedDataParallel
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from megatron_ext.training.forward import Batch, forward_step
from megatron_ext.training.metrics import StepResult, TrainState
from megatron_ext.training.profile import GRADIENTS, OPTIMIZER, OTHER
from megatron_ext.training.schedule import set_rates
from megatron_ext.training.source_losses import LOSS_UNIT, SourceTotals

Readers = list[Iterator[Batch] | None]
"""One reader per model chunk of this rank; None where the chunk reads no data."""


class BatchLoss(NamedTuple):
    """Loss summed over counted tokens, and how many those are; divided only where the last batch has been added.

    `sources` has both for each source, where they were asked for; `squared_logits` is the sum over counted tokens of
    the largest logit's square, with a max-z loss.
    """

    loss_sum: float
    counted_tokens: float
    sources: SourceTotals | None = None
    squared_logits: float = 0.0


def train_step(parts: Components, state: TrainState, readers: Readers) -> StepResult:
    """Train on the next global batch. Collective over all ranks.

    A micro-batch without any learned token weighs nothing. A global batch without any leaves weights and optimizer
    as they are: its iteration counts as skipped, with loss 0 and a warning. So does one whose loss or gradient is NaN
    or infinite on any rank.

    Args:
        parts: model, optimizer, schedule.
        state: where the run stands before this step; not changed.
        readers: the training micro-batches.
    """
    started = time.perf_counter()
    train = parts.run.train
    global_batch_size = parts.run.global_batch_size_at(state.consumed_samples)
    seq_length = parts.run.seq_length_at(state.consumed_samples)
    seed_step(parts.world, train.seed, state.iteration)
    with parts.profile.phase(GRADIENTS, "zero-gradients"):
        clear_gradients(parts, state)
    rate = set_rates(parts.optimizer.param_groups, parts.schedule, state.schedule_step)
    loss_sum, counted_tokens, sources, squared_logits = forward_backward(
        parts, readers, global_batch_size, forward_only=False, seq_length=seq_length
    )
    if counted_tokens:
        with parts.profile.phase(OPTIMIZER):
            update = update_or_skip(parts.optimizer, loss_sum, whole_gradients(parts))
    else:
        log.warn(
            f"iteration {state.iteration + 1} has no learned token in its {global_batch_size} samples: update skipped"
        )
        update = Update(made=False)
    result = StepResult(
        lm_loss=loss_sum / max(counted_tokens, 1.0),
        learning_rate=rate,
        global_batch_size=global_batch_size,
        num_tokens=global_batch_size * train.seq_length,
        seconds=time.perf_counter() - started,
        grad_norm=update.grad_norm,
        loss_scale=parts.optimizer.get_loss_scale().item() if train.fp16 else None,
        skipped=not update.made,
        params_norm=parameters_norm(parts) if parts.run.logging.log_params_norm else None,
        num_zeros=update.num_zeros,
        sources=sources,
        max_z_loss=train.max_z_loss_weight * squared_logits / max(counted_tokens, 1.0) or None,
        seq_length=seq_length if train.seq_length_warmup else None,
    )
    if result.is_nan:
        norm = "not computed" if result.grad_norm is None else result.grad_norm
        log.warn(
            f"iteration {state.iteration + 1}: loss {result.lm_loss}, gradient norm {norm}: update skipped on all ranks"
        )
    return result


def clear_gradients(parts: Components, state: TrainState) -> None:
    """Set all gradients to zero and say how many micro-batches come; rank-local."""
    for chunk in parts.chunks:
        chunk.zero_grad_buffer()
        if isinstance(chunk, OrderedDataParallel):
            consumed = state.consumed_samples
            chunk.expect(parts.run.num_microbatches_at(consumed), parts.run.summed_run_at(consumed))
    parts.optimizer.zero_grad()


def whole_gradients(parts: Components) -> list[torch.nn.Parameter] | None:
    """The trained parameters of this rank, where each has its whole gradient on every data-parallel rank.

    That is said of --deterministic-data-parallel only; otherwise None.
    """
    if not parts.run.parallel.deterministic_data_parallel:
        return None
    return [parameter for model in parts.models for parameter in model.parameters() if parameter.requires_grad]


def forward_backward(
    parts: Components, readers: Readers, global_batch_size: int, forward_only: bool, seq_length: int | None = None
) -> BatchLoss:
    """Run one global batch through the pipeline and return its summed loss and counted tokens, on every rank.

    Collective over all ranks. With `forward_only` no gradients are computed, and nothing is summed per source.
    `seq_length` is the length that the readers cut samples into, which the stages of a pipeline must know beforehand;
    None for whole samples.
    """
    train = parts.run.train
    length = seq_length or train.seq_length
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=readers if len(readers) > 1 else readers[0],
        model=parts.chunks if len(parts.chunks) > 1 else parts.chunks[0],
        num_microbatches=global_batch_size // (train.micro_batch_size * parts.run.data_parallel_size),
        seq_length=length,
        micro_batch_size=train.micro_batch_size * (train.seq_length // length),
        forward_only=forward_only,
    )
    ordered = parts.run.parallel.deterministic_data_parallel
    with parts.profile.phase(OTHER, "sum-losses"):
        return sum_reports(reports, parts.world, 0 if forward_only else parts.num_sources, ordered)


def sum_reports(
    reports: list[dict[str, torch.Tensor]], world: World, num_sources: int = 0, ordered: bool = False
) -> BatchLoss:
    """Return summed loss and counted tokens of all micro-batches, data- and context-parallel ranks, on every rank.

    Args:
        reports: of this rank's micro-batches; none on stages without a loss.
        world: this rank among all.
        num_sources: k, for totals per source; 0 for none.
        ordered: add micro-batch after micro-batch of the global batch, of which rank r has the r-th part.
    """
    total = torch.zeros(3 + 3 * num_sources, dtype=torch.float64, device=world.device)
    for report in reports:
        total[:2] += report["loss and tokens"]
        if "squared logits" in report:
            total[2] += report["squared logits"]
    if reports and num_sources:
        add_by_source(reports, total[3:].view(3, num_sources), world)
    own_loss = total[0].clone()
    if ordered and reports:
        total[:3] = _sum_in_order(reports, world)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if world.grid.pp_size > 1:
        source = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(total, source, group=parallel_state.get_pipeline_model_parallel_group())
    loss, counted, squared_logits, *sums = total.tolist()
    if not math.isfinite(loss) and not own_loss.isfinite():
        log.info_any_rank(f"rank {world.rank}: the loss of its own micro-batches is {own_loss.item()}")
    sources = SourceTotals(np.array(sums).astype(np.int64).reshape(3, num_sources)) if num_sources else None
    return BatchLoss(loss, counted, sources, squared_logits)


def _sum_in_order(reports: list[dict[str, torch.Tensor]], world: World) -> torch.Tensor:
    """Return the sums over all micro-batches, fp64 `[3]`, on the first data-parallel rank and zeros on the others."""
    rows = torch.zeros(len(reports), 3, dtype=torch.float64, device=world.device)
    for row, report in zip(rows, reports, strict=True):
        row[:2] = report["loss and tokens"]
        row[2] = report.get("squared logits", 0.0)
    every = rows.new_empty(world.grid.dp_size * len(reports), 3)
    dist.all_gather_into_tensor(every, rows, group=parallel_state.get_data_parallel_group())
    return every.sum(0) if world.at.dp_rank == 0 else rows.new_zeros(3)


def add_by_source(reports: list[dict[str, torch.Tensor]], totals: torch.Tensor, world: World) -> None:
    """Add samples, counted tokens and loss of each source to `totals`, fp64 `[3, k]`.

    All of them are whole numbers, the loss as one of `LOSS_UNIT` per sample, far below 2^53: so neither here nor
    between ranks does the order of adding matter. A sample whose loss is not finite adds itself alone.
    Rank-local, but under context parallelism, where the parts of each sample are put together first and the first of
    the ranks that share it counts it.
    """
    sources = torch.cat([report["sources"] for report in reports]).to(totals.device, non_blocking=True)
    losses, tokens = torch.cat([report["loss and tokens of samples"] for report in reports], dim=1)
    if world.grid.cp_size > 1:
        pair = torch.stack([losses, tokens])
        dist.all_reduce(pair, group=parallel_state.get_context_parallel_group())
        losses, tokens = pair
        if world.at.cp_rank > 0:
            return
    units = (losses / LOSS_UNIT).round()
    samples = torch.ones_like(units)
    finite = units.isfinite()
    counts = torch.stack([samples, torch.where(finite, tokens, 0.0), torch.where(finite, units, 0.0)])
    totals.index_add_(1, sources, counts)


def seed_step(world: World, seed: int, iteration: int) -> None:
    """Seed dropout for one iteration as a function of (seed, iteration, place in the grid); rank-local.

    So a resumed run drops what the uninterrupted one drops (law L2) and no generator state is ever saved. Ranks of
    one tensor-parallel group share the default generator and have their own tensor-parallel one, as in Megatron-LM.
    """
    # ranks that share a sequence have tokens of their own in it; places 1009 apart, because megatron-core adds the
    # tensor-parallel rank
    data_rank = world.at.dp_rank * world.grid.cp_size + world.at.cp_rank
    place = (world.at.pp_rank * 10_007 + data_rank) * 1009
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
