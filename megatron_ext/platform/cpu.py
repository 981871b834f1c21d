"""Runs megatron-core 0.16 on CPU processes over gloo: the one place that adapts it.

megatron-core names CUDA in 119 lines of its dense path and has no switch for it. Each of these names gets the
meaning it has on a machine whose only device is the CPU: "cuda" as a device argument is the CPU, streams and
events do nothing because nothing is asynchronous, the CUDA generator is the CPU generator. No arithmetic is
replaced. The table below lists every replaced name; `tests/unit/platform/test_cpu.py` has a case for each.
The adapter is never active where CUDA is (`select_platform`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
from collections.abc import Callable
from typing import Any

import torch

from megatron_ext.errors import ConfigError
from megatron_ext.platform.interface import local_processes

WRITTEN_FOR = (0, 16)
"""The megatron-core minor version whose CUDA lines were read; another one may hide new ones."""

FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn", "empty_like", "zeros_like", "eye")

CUDA_TYPE_NAMES = {
    "torch.FloatTensor": "torch.cuda.FloatTensor",
    "torch.HalfTensor": "torch.cuda.HalfTensor",
    "torch.BFloat16Tensor": "torch.cuda.BFloat16Tensor",
}
"""The optimizers compare a parameter's type name with the CUDA names on the right."""

_CPU = torch.device("cpu")


class CpuPlatform:
    """One CPU process per rank, gloo between them."""

    name = "cpu"
    backend = "gloo"

    def activate(self, local_rank: int, num_threads: int | None) -> torch.device:
        """Set this process's thread count, adapt torch.cuda and megatron-core, and return the CPU device.

        Args:
            local_rank: unused; there is one CPU.
            num_threads: torch threads of this process; None divides the cores among the local processes.

        Raises:
            ConfigError: the installed megatron-core is not the minor version the adapter was written for.
        """
        del local_rank
        available = len(os.sched_getaffinity(0))
        torch.set_num_threads(num_threads or max(1, available // local_processes()))
        prefer_throughput()
        check_megatron_core_version()
        adapt()
        return _CPU

    def peak_memory_bytes(self) -> int:
        """Return the largest resident set of this process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prefer_throughput() -> None:
    """Schedule this thread, and those that it will start, as batch work if no other policy was chosen for it.

    gloo's thread tries for a connection's lock again and again while another thread sends. As an interactive task it
    takes the core from the very thread that it waits for: with as many ranks as cores, or more, a small all-reduce
    takes twice as long (`benchmarks/collectives.py`). A batch task takes no core from a running one when it wakes.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid it; it is only slower then
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class NoStream:
    """A stream on a device without streams: work is done when its call returns."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device = _CPU

    def _nothing(self, *_: object, **__: object) -> None:
        return None

    synchronize = wait_stream = wait_event = _nothing

    def record_event(self, event: NoEvent | None = None) -> NoEvent:
        """Return an event that has already happened."""
        return event or NoEvent()


class NoEvent:
    """An event that has already happened."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def _nothing(self, *_: object, **__: object) -> None:
        return None

    record = wait = synchronize = _nothing

    def query(self) -> bool:
        """Return True: it has happened."""
        return True


def check_megatron_core_version() -> None:
    """Refuse a megatron-core minor version whose CUDA lines nobody has read for this adapter."""
    from importlib.metadata import version

    installed = version("megatron-core")
    if tuple(int(part) for part in installed.split(".")[:2]) != WRITTEN_FOR:
        raise ConfigError(
            f"megatron-core {installed} cannot run on CPU here",
            f"the CPU adapter was written for megatron-core {WRITTEN_FOR[0]}.{WRITTEN_FOR[1]}",
            f"install megatron-core=={WRITTEN_FOR[0]}.{WRITTEN_FOR[1]}.*, or run on CUDA devices",
        )


@functools.cache
def adapt() -> None:
    """Replace the names in `replacements()`, once per process."""
    for owner, name, replacement in replacements():
        setattr(owner, name, replacement)


def replacements() -> list[tuple[Any, str, Any]]:
    """Return every replaced name as (owner, attribute, its meaning on a CPU)."""
    import megatron.core.tensor_parallel.random as megatron_random

    cuda = torch.cuda
    device_arguments = [(torch, name, _with_cpu_device(getattr(torch, name))) for name in FACTORIES]
    tensor_methods = [
        (torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),
        (torch.Tensor, "to", _to_without_cuda(torch.Tensor.to)),
        (torch.Tensor, "type", _type_with_cuda_names(torch.Tensor.type)),
        (torch.nn.Module, "cuda", lambda module, *_, **__: module),
    ]
    devices = [
        (cuda, "current_device", lambda: _CPU),
        (cuda, "set_device", _nothing()),
        (cuda, "synchronize", _nothing()),
        (cuda, "empty_cache", _nothing()),
        (cuda, "Stream", NoStream),
        (cuda, "Event", NoEvent),
        (cuda, "current_stream", lambda *_: NoStream()),
        (cuda, "default_stream", lambda *_: NoStream()),
        (cuda, "stream", lambda *_: contextlib.nullcontext()),
        (cuda.nvtx, "range_push", _nothing()),
        (cuda.nvtx, "range_pop", _nothing()),
    ]
    generator = [
        (cuda, "manual_seed", lambda seed: torch.default_generator.manual_seed(seed)),
        (cuda, "get_rng_state", lambda *_, **__: torch.get_rng_state()),
        (cuda, "set_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
        (megatron_random, "_get_cuda_rng_state", lambda *_, **__: torch.get_rng_state()),
        (megatron_random, "_set_cuda_rng_state", lambda state, *_, **__: torch.set_rng_state(state)),
    ]
    return [*device_arguments, *tensor_methods, *devices, *generator]


def _nothing() -> Callable[..., None]:
    """Return a function that does nothing; a new one each time, because torch.compile tells functions by identity."""

    def nothing(*_: object, **__: object) -> None:
        return None

    return nothing


def _is_cuda(device: object) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.split(":")[0] == "cuda"


def _with_cpu_device(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return `factory` with a CUDA `device=` read as the CPU."""

    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
            kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return on_cpu


def _to_without_cuda(to: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return `Tensor.to` with a CUDA device, by position or by name, read as the CPU."""

    @functools.wraps(to)
    def to_cpu(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(_CPU if _is_cuda(arg) else arg for arg in args)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return to(tensor, *args, **kwargs)

    return to_cpu


def _type_with_cuda_names(type_of: Callable[..., Any]) -> Callable[..., Any]:
    """Return `Tensor.type` that answers a parameter's type name with the CUDA name; conversions are left alone."""

    @functools.wraps(type_of)
    def cuda_type_name(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = type_of(tensor, *args, **kwargs)
        return CUDA_TYPE_NAMES.get(answer, answer) if isinstance(answer, str) else answer

    return cuda_type_name
