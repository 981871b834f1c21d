"""Adding bf16 gradients to the fp32 buffer on a CPU, in one pass over memory."""

from __future__ import annotations

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_ext.platform.cpu_kernels import CPU_KERNELS, fits


def add_gradients_natively(chunk: DistributedDataParallel) -> None:
    """Have our kernel add what the backward pass of a micro-batch brings; rank-local.

    PyTorch's `fp32.add_(bf16)` makes an fp32 copy of the gradient first; the sum is the same to the last bit. What our
    kernel cannot take is left to megatron-core, which asks `grad_added_to_main_grad` and is told. So is a weight that
    embedding and output layer share: its mark `zero_out_wgrad` makes megatron-core add whatever it is told.

    Args:
        chunk: a model chunk with its gradient buffers.
    """
    for parameter in chunk.params_with_grad:
        if not getattr(parameter, "zero_out_wgrad", False):
            parameter.register_post_accumulate_grad_hook(_add)


def _add(parameter: torch.nn.Parameter) -> None:
    total, share = parameter.main_grad, parameter.grad
    added = fits(share) and total.dtype == torch.float32 and total.is_contiguous() and share.is_contiguous()
    if added:
        CPU_KERNELS.add(total.data_ptr(), share.data_ptr(), total.numel())
    parameter.grad_added_to_main_grad = added
