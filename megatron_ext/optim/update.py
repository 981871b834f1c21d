"""One update by megatron-core's optimizer, made by all ranks or by none: a loss or gradient that is no number skips it.

megatron-core looks for such gradients only where it scales the loss; elsewhere a NaN goes through the clipping into
every weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from megatron_ext import log


class Update(NamedTuple):
    """Whether the update was made; the global L2 norm of the gradient before clipping and its zeros, where known."""

    made: bool
    grad_norm: float | None = None
    num_zeros: int | None = None


@torch.no_grad()
def update_or_skip(
    optimizer: MegatronOptimizer, loss: float, whole: Sequence[torch.nn.Parameter] | None = None
) -> Update:
    """Clip the reduced gradients and update the parameters, unless anything is NaN or infinite on any rank.

    A skipped update leaves parameters and optimizer state as they are, bit for bit; only a dynamic loss scale moves.
    Collective over all ranks. The all-reduce of the gradient norm decides, so it is also made without clipping; without
    the distributed optimizer it is over the model-parallel group, and `agreed` puts the data-parallel ranks together.

    Args:
        optimizer: built by `optim.build`; the gradients of the global batch are in its buffers.
        loss: of the global batch, as this rank knows it.
        whole: this rank's trained parameters, each with its whole gradient in `main_grad`; the norm is then taken of
            these, in an order that does not depend on the data-parallel ranks, and not of slices.
    """
    # before the gradients are prepared, which unscales them, and which of them in place depends on the optimizer
    whole_norm = None if whole is None else whole_gradient_norm(optimizer, whole, math.isfinite(loss))
    if overflows(optimizer):
        return Update(made=False)
    own_norm = gradient_norm(optimizer, math.isfinite(loss)) if whole_norm is None else whole_norm
    grad_norm = agreed(optimizer, own_norm)
    if not math.isfinite(grad_norm):
        return Update(made=False, grad_norm=grad_norm)
    clip = optimizer.config.clip_grad
    if clip > 0.0:
        scale_gradients(optimizer, clip / (grad_norm + 1e-6))
    num_zeros = int(optimizer.count_zeros()) if optimizer.config.log_num_zeros_in_grad else None
    return Update(bool(optimizer.step_with_ready_grads()), grad_norm, num_zeros)


def overflows(optimizer: MegatronOptimizer) -> bool:
    """Prepare the gradients; say whether a scaled one is not finite on any rank, which lowers the scale on all.

    Collective over all ranks where gradients are scaled: with megatron-core's maximum over the model-parallel group the
    scales of data-parallel ranks could part.
    """
    group = optimizer.grad_stats_parallel_group
    optimizer.grad_stats_parallel_group = dist.group.WORLD
    try:
        return bool(optimizer.prepare_grads())
    finally:
        optimizer.grad_stats_parallel_group = group


def agreed(optimizer: MegatronOptimizer, grad_norm: float) -> float:
    """Return the norm, or NaN where another data-parallel copy of the gradients is not finite.

    Collective over all ranks.
    The copies are the same sums, but for a rank that damages its own after the reduction: then the others must not go
    on without it. One all-reduce of one number; none where the norm was over all ranks.
    """
    world_size = dist.get_world_size()
    if dist.get_world_size(optimizer.get_grad_stats_parallel_group()) == world_size:
        return grad_norm
    is_finite = math.isfinite(grad_norm)
    finite_ranks = torch.tensor([float(is_finite)], device=optimizer.get_loss_scale().device)
    dist.all_reduce(finite_ranks)
    if finite_ranks == world_size:
        return grad_norm
    if not is_finite and finite_ranks:
        log.info_any_rank(f"rank {dist.get_rank()}: the norm of its own copy of the gradients is {grad_norm}")
    return math.nan if is_finite else grad_norm


def gradient_norm(optimizer: MegatronOptimizer, loss_is_finite: bool) -> float:
    """Return the global L2 norm of the prepared gradients; not finite when one or a loss is not.

    Collective over the ranks among which the gradients are divided: all with the distributed optimizer, else the
    model-parallel group.

    The norm counts every parameter once, so gradients of copies (norm weights on further tensor-parallel ranks, tied
    embeddings) are outside of it. They enter as one more gradient that is 0, or NaN when any of them is not finite.
    """
    counted = optimizer.get_main_grads_for_grad_norm()
    seen = {id(gradient) for gradient in counted}
    gradients = [parameter.grad for parameter in optimizer.get_parameters() if parameter.grad is not None]
    copies = [gradient for gradient in gradients if id(gradient) not in seen]
    device = optimizer.get_loss_scale().device
    finite = [torch.tensor(loss_is_finite, device=device), *(gradient.isfinite().all() for gradient in copies)]
    verdict = torch.where(torch.stack(finite).all(), 0.0, math.nan).float().view(1)
    # one kernel for all on a GPU, and one wait of the host; without Apex or Transformer Engine megatron-core's own
    # function waits once for each gradient
    norms = torch.stack(torch._foreach_norm([*counted, verdict]))
    squared = torch.linalg.vector_norm(norms).square()
    dist.all_reduce(squared, group=optimizer.get_grad_stats_parallel_group())
    return math.sqrt(squared.item())


def whole_gradient_norm(
    optimizer: MegatronOptimizer, parameters: Sequence[torch.nn.Parameter], loss_is_finite: bool
) -> float:
    """Return the global L2 norm of unprepared whole gradients, as `gradient_norm` does of prepared ones.

    The norms of the parameters (fp32) are squared and added in fp64, in the order of the parameters, then of the
    ranks. Collective over the model-parallel group.

    Args:
        optimizer: its loss scale is divided out.
        parameters: the same ones on every data-parallel rank.
        loss_is_finite: whether this rank knows of a loss that is not.
    """
    group, tp_group = parallel_state.get_model_parallel_group(), parallel_state.get_tensor_model_parallel_group()
    scale = optimizer.get_loss_scale()
    total = torch.zeros(1, dtype=torch.float64, device=scale.device)
    finite = torch.tensor(loss_is_finite, device=scale.device)
    for parameter in parameters:
        norm = torch.linalg.vector_norm(parameter.main_grad, dtype=torch.float32)
        if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter, tp_group):
            total += norm.double().square()
        finite &= norm.isfinite()
    every = total.new_empty(group.size())
    dist.all_gather_into_tensor(every, torch.where(finite, total, math.nan), group=group)
    return math.sqrt(sum(every.tolist())) / scale.item()


def scale_gradients(optimizer: MegatronOptimizer, factor: float) -> None:
    """Multiply the prepared gradients by `factor` where it is below 1. Rank-local, in place.

    Source of the constant in the callers' factor: Megatron-LM's clip_grads.py, max_norm / (norm + 1e-6).
    """
    gradients = [parameter.grad for parameter in optimizer.get_parameters() if parameter.grad is not None]
    if factor < 1.0 and gradients:  # a stage that trains nothing has none
        torch._foreach_mul_(gradients, factor)
