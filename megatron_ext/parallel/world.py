"""The only place that starts process groups."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from megatron_ext.config import RunConfig
from megatron_ext.parallel.grid import Coordinates, Grid
from megatron_ext.platform import Platform


@dataclass(frozen=True)
class World:
    """This process among all: passed to whoever needs it, never fetched."""

    rank: int
    world_size: int
    device: torch.device
    grid: Grid
    at: Coordinates = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", self.grid.coordinates(self.rank))

    @property
    def is_logging_rank(self) -> bool:
        """True on the last rank: as in Megatron-LM, it knows the loss and writes the logs."""
        return self.rank == self.world_size - 1


@contextmanager
def start_world(run: RunConfig, platform: Platform) -> Iterator[World]:
    """Start torch.distributed and megatron-core's groups, yield this rank's `World`, and take both down.

    Every rank calls it. torchrun's RANK, LOCAL_RANK and MASTER_ADDR are read here and nowhere else; without
    torchrun the process is a world of one.
    """
    parallel = run.parallel
    device = platform.activate(int(os.environ.get("LOCAL_RANK", "0")), parallel.num_threads)
    timeout = datetime.timedelta(minutes=parallel.distributed_timeout_minutes)
    backend = parallel.distributed_backend or platform.backend
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=device if backend == "nccl" else None)
    else:
        dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
    try:
        with start_layout(run, platform) as world:
            yield world
    finally:
        dist.destroy_process_group()


@contextmanager
def start_layout(run: RunConfig, platform: Platform) -> Iterator[World]:
    """Lay `run` out over the processes that are already connected, and forget the layout at the end.

    Collective over all ranks. Several layouts can follow each other in the same processes (tests do so).
    """
    parallel = run.parallel
    grid = Grid.of_world(
        run.world_size,
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        parallel.context_parallel_size,
    )
    device = torch.device("cuda", torch.cuda.current_device()) if platform.name == "cuda" else torch.device("cpu")
    try:
        start_model_parallel(run, platform)
        yield World(dist.get_rank(), run.world_size, device, grid)
    finally:
        stop_model_parallel()


def start_model_parallel(run: RunConfig, platform: Platform) -> None:
    """Build megatron-core's groups and seed its generators for `run`'s layout; collective over all ranks.

    The seed of dropout differs by pipeline stage and tensor-parallel rank as in Megatron-LM (seed + 100 * stage).
    """
    from megatron.core import parallel_state, tensor_parallel

    parallel = run.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=run.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        num_distributed_optimizer_instances=parallel.num_distributed_optimizer_instances,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,
        # nothing here asks for gloo twins of the data-parallel groups: checkpoints go through the groups themselves
        create_gloo_process_groups=False,
    )
    stage = parallel_state.get_pipeline_model_parallel_rank()
    seed = run.train.seed + 100 * stage
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def stop_model_parallel() -> None:
    """Forget megatron-core's groups, so that another layout can be started in the same processes (tests).

    They are taken down as well: a group that is only forgotten keeps its threads and connections.
    """
    from megatron.core import parallel_state

    groups = parallel_state._global_process_group_list or []
    parallel_state.destroy_model_parallel()
    for group in groups:
        if group is not None:  # None is the world
            dist.destroy_process_group(group)
