"""A weight's gradient added to the fp32 buffer by the product that computes it, on a GPU."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import layers
from torch import Tensor


def add_weight_gradients_in_products() -> None:
    """Let megatron-core's `gradient_accumulation_fusion` work without Apex's extension, once per process.

    PyTorch has that product since 2.8: bf16 in, fp32 out, added to what is there. Where Apex is installed with the
    extension, megatron-core has found it and goes on with it.
    """
    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = _Products
        layers._grad_accum_fusion_available = True


class _Products:
    """What megatron-core calls of the extension `fused_weight_gradient_mlp_cuda`; tokens in one dimension."""

    @staticmethod
    def wgrad_gemm_accum_fp32(inputs: Tensor, of_outputs: Tensor, main_grad: Tensor) -> None:
        add_product(main_grad, of_outputs.t(), inputs)

    wgrad_gemm_accum_fp16 = wgrad_gemm_accum_fp32


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left right, in one product whose sums stay in fp32.

    Args:
        total: fp32 `[m, n]` on a GPU.
        left: `[m, k]`, any float dtype.
        right: `[k, n]`, the same dtype.
    """
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
