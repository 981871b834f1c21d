"""The device: one interface, two implementations, chosen by what is there."""

from __future__ import annotations

from megatron_ext import log
from megatron_ext.errors import ConfigError
from megatron_ext.platform.interface import Platform, local_processes


def select_platform(device: str, tensor_ranks: int = 1, local_processes: int = 1) -> Platform:
    """Return the platform for `--device` auto, cpu or cuda; nothing is activated yet.

    Args:
        device: `--device`.
        tensor_ranks: `--tensor-model-parallel-size`, by which CUDA's queues are chosen before it starts.
        local_processes: of this run on this machine.

    Raises:
        ConfigError: `--device cuda` where torch sees no CUDA device, or fewer GPUs than processes.
    """
    import torch

    from megatron_ext.platform.cuda import CudaPlatform, start_kernels_in_order

    queues = start_kernels_in_order(tensor_ranks) if device != "cpu" else ""
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError(
            "--device cuda was asked for, but torch sees no CUDA device",
            f"torch {torch.__version__} reports torch.cuda.is_available() = False",
            "use --device auto or --device cpu, or run tools/doctor.py to see what is installed",
        )
    if device == "cuda" or (device == "auto" and has_cuda):
        _refuse_shared_gpus(local_processes, torch.cuda.device_count())
        if queues:
            log.info(queues)
        return CudaPlatform()
    from megatron_ext.platform.cpu import CpuPlatform

    return CpuPlatform()


def _refuse_shared_gpus(processes: int, gpus: int) -> None:
    """NCCL connects no two processes on one GPU; said before it says so in its own words, on some of the ranks."""
    if processes > gpus:
        raise ConfigError(
            f"{processes} processes were started on this machine, which has {gpus} GPU{'s' if gpus > 1 else ''}",
            "every process needs a GPU of its own",
            f"torchrun --nproc-per-node {gpus}, or --device cpu",
        )


__all__ = ["Platform", "local_processes", "select_platform"]
