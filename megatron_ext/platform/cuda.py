"""CUDA: megatron-core's home; nothing is adapted."""

from __future__ import annotations

import os

import torch

MAX_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


def start_kernels_in_order(tensor_ranks: int) -> str:
    """Give CUDA one queue of work where layers are shared by ranks, unless the user has chosen; say what was done.

    Megatron's layers put a collective in the queue before the product that hides it, and rely on the device to start
    them in that order, which GPUs before Blackwell do with one connection only. CUDA reads the variable when it
    starts, so this must come before any question to it. Source: megatron-core 0.16.1 tensor_parallel/layers.py
    (linear_with_grad_accumulation_and_async_allreduce).

    Args:
        tensor_ranks: `--tensor-model-parallel-size`, with or without sequence parallelism.

    Returns:
        What the log should say; empty where there is nothing to say.
    """
    chosen = os.environ.get(MAX_CONNECTIONS)
    if tensor_ranks == 1:
        return ""
    if chosen is None:
        os.environ[MAX_CONNECTIONS] = "1"
        return f"{MAX_CONNECTIONS} set to 1: collectives of tensor parallelism start before the products that hide them"
    return "" if chosen == "1" else f"{MAX_CONNECTIONS} is {chosen}, as you set it: right on Blackwell, 1 before that"


class CudaPlatform:
    """One CUDA device per process, chosen by the local rank."""

    name = "cuda"
    backend = "nccl"

    def activate(self, local_rank: int, num_threads: int | None) -> torch.device:
        """Make `cuda:local_rank` the current device and return it."""
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)

    def peak_memory_bytes(self) -> int:
        """Return the largest memory that torch's allocator has held on the current device."""
        return torch.cuda.max_memory_allocated()
