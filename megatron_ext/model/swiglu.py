"""SwiGLU as one function of the first projection's output, which is all that it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from megatron_ext.platform.compiled import compiled
from megatron_ext.platform.cpu_kernels import CPU_KERNELS, fits
from megatron_ext.platform.kernels import COMPILED, NATIVE, Kernels


def swiglu(gate_and_up: Tensor) -> Tensor:
    """Return silu(gate) * up, in PyTorch's operations. Rank-local.

    In value and gradient what megatron-core's own `silu(gate) * up` gives, to the last bit; but of the five f that
    autograd keeps there per token with the last projection's input (gate and up, silu(gate), a copy of up, the output)
    it keeps three: silu(gate) is computed again.

    Args:
        gate_and_up: `[..., 2f]`, any float dtype: f columns of gates, then those that they multiply.

    Returns:
        `[..., f]`, the same dtype.

    Source: arXiv:2002.05202, equation 6.
    """
    return _SwiGLU.apply(gate_and_up)


def swiglu_of(kernels: Kernels) -> Callable[[Tensor], Tensor]:
    """Return `swiglu` as the kernels that `kernels` names compute it."""
    plain = compiled(swiglu_formula) if kernels.compiled or kernels.elementwise == COMPILED else swiglu
    # functions proper: megatron-core's build_module would try to instantiate any other callable
    return (lambda x: native_swiglu(x, plain)) if kernels.elementwise == NATIVE else plain


def swiglu_formula(gate_and_up: Tensor) -> Tensor:
    """As `swiglu`, operation by operation, for torch.compile to make one kernel of each way."""
    gate, up = gate_and_up.chunk(2, -1)
    return functional.silu(gate) * up


def native_swiglu(gate_and_up: Tensor, otherwise: Callable[[Tensor], Tensor] = swiglu) -> Tensor:
    """As `swiglu`, in our CPU kernels where they fit: fp32 inside and rounded once."""
    ours = fits(gate_and_up) and gate_and_up.shape[-1] % 2 == 0
    return _NativeSwiGLU.apply(gate_and_up) if ours else otherwise(gate_and_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_and_up):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        [gate_and_up] = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        grad = torch.empty_like(gate_and_up)
        of_gate, of_up = grad.chunk(2, -1)
        torch.mul(functional.silu(gate), grad_output, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad_output * up, gate, grad_input=of_gate)
        return grad


class _NativeSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_and_up):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        given = gate_and_up.contiguous()
        ctx.save_for_backward(given)
        width = given.shape[-1] // 2
        out = given.new_empty(*given.shape[:-1], width)
        CPU_KERNELS.swiglu(out.data_ptr(), given.data_ptr(), out.shape[:-1].numel(), width)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        [given] = ctx.saved_tensors
        upstream, grad = grad_output.contiguous(), torch.empty_like(given)
        rows, width = upstream.shape[:-1].numel(), upstream.shape[-1]
        CPU_KERNELS.swiglu_gradient(grad.data_ptr(), upstream.data_ptr(), given.data_ptr(), rows, width)
        return grad
