"""CUDA: megatron-core's home; nothing is adapted."""

from __future__ import annotations

import torch


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
