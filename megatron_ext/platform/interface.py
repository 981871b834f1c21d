"""What the rest of the code may ask of a device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Platform(Protocol):
    """A device that megatron-core can run on. Everything here is rank-local."""

    name: str
    """`cpu` or `cuda`."""
    backend: str
    """torch.distributed's backend for this device: `gloo` or `nccl`."""

    def activate(self, local_rank: int, num_threads: int | None) -> torch.device:
        """Prepare this process and return its device; call once, before any megatron-core object is built."""

    def peak_memory_bytes(self) -> int:
        """Return the largest memory this process has used on the device (resident set on CPU)."""


def local_processes() -> int:
    """Return how many processes of this run are on this machine, as torchrun tells them; 1 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
