"""One update by megatron-core's optimizer, made by all ranks or by none: a loss or gradient that is no number skips it.

megatron-core looks for such gradients only where it scales the loss; elsewhere a NaN goes through the clipping into
every weight.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32, get_grad_norm_fp32
from megatron.core.optimizer.optimizer import MegatronOptimizer


class Update(NamedTuple):
    """Whether the update was made; the global L2 norm of the gradient before clipping and its zeros, where known."""

    made: bool
    grad_norm: float | None = None
    num_zeros: int | None = None


@torch.no_grad()
def update_or_skip(optimizer: MegatronOptimizer, loss: float) -> Update:
    """Clip the reduced gradients and update the parameters, unless anything is NaN or infinite on any rank.

    A skipped update leaves parameters and optimizer state as they are, bit for bit; only a dynamic loss scale moves.
    Collective over all ranks with the distributed optimizer, else over the model-parallel group: there the
    data-parallel ranks hold the same sums. The one all-reduce of the gradient norm decides, so it is also made
    without clipping.

    Args:
        optimizer: built by `optim.build`; the gradients of the global batch are in its buffers.
        loss: of the global batch, as this rank knows it.
    """
    if optimizer.prepare_grads():
        return Update(made=False)  # an overflow of the scaled gradients
    grad_norm = gradient_norm(optimizer, math.isfinite(loss))
    if not math.isfinite(grad_norm):
        return Update(made=False, grad_norm=grad_norm)
    clip, parameters = optimizer.config.clip_grad, optimizer.get_parameters()
    if clip > 0.0 and parameters:  # kernels of GPUs refuse an empty list, that of a stage that trains nothing
        clip_grad_by_total_norm_fp32(parameters, clip, grad_norm)
    num_zeros = int(optimizer.count_zeros()) if optimizer.config.log_num_zeros_in_grad else None
    return Update(bool(optimizer.step_with_ready_grads()), grad_norm, num_zeros)


def gradient_norm(optimizer: MegatronOptimizer, loss_is_finite: bool) -> float:
    """Return the global L2 norm of the prepared gradients; not finite when one or a loss is not. Collective as above.

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
    group = optimizer.get_grad_stats_parallel_group()
    return float(get_grad_norm_fp32([*counted, verdict], grad_stats_parallel_group=group))
