"""A world starts with the groups of its layout, and leaves nothing behind when it ends."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_ext.parallel.grid import Grid
from megatron_ext.parallel.world import World, start_layout, start_world
from megatron_ext.platform.cpu import CpuPlatform
from tests.group_threads import assert_groups_are_gone, group_threads
from tests.unit.tiny import tiny_run

GROUPS = {
    "tensor": parallel_state.get_tensor_model_parallel_group,
    "pipeline": parallel_state.get_pipeline_model_parallel_group,
    "model": parallel_state.get_model_parallel_group,
    "data": parallel_state.get_data_parallel_group,
    "data_and_context": lambda: parallel_state.get_data_parallel_group(with_context_parallel=True),
    "embedding": parallel_state.get_embedding_group,
}


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def assert_nothing_is_left() -> None:
    assert not dist.is_initialized()
    assert not parallel_state.is_initialized()


def test_without_torchrun_a_process_is_a_world_of_one():
    with start_world(tiny_run(), CpuPlatform()) as world:
        assert (world.rank, world.world_size, world.device) == (0, 1, torch.device("cpu"))
        assert world.grid == Grid(1, 1, 1, 1)
        assert world.is_logging_rank
        assert dist.get_backend() == "gloo" and dist.get_world_size() == 1
    assert_nothing_is_left()


def test_threads_that_wait_for_other_ranks_take_no_core_from_those_that_send():
    others = group_threads()
    with start_world(tiny_run(), CpuPlatform()):
        assert {os.sched_getscheduler(thread) for thread in group_threads() - others} == {os.SCHED_BATCH}


@pytest.mark.parametrize("name", GROUPS)
def test_every_group_of_megatron_core_is_there(name: str):
    with start_world(tiny_run(), CpuPlatform()):
        group = GROUPS[name]()
        total = torch.ones(1)
        dist.all_reduce(total, group=group)
        assert (group.size(), group.rank(), total.item()) == (1, 0, 1.0)


def test_a_world_can_start_again_and_with_another_seed():
    drawn = []
    for seed in (5, 6, 5):
        with start_world(tiny_run(seed=seed), CpuPlatform()):
            assert torch.initial_seed() == seed
            drawn.append(torch.rand(3))
        assert_nothing_is_left()
    assert drawn[0].equal(drawn[2]) and not drawn[0].equal(drawn[1])


def test_an_error_inside_takes_the_world_down_too():
    with pytest.raises(KeyError, match="inside"), start_world(tiny_run(), CpuPlatform()):
        raise KeyError("inside")
    assert_nothing_is_left()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_layout_that_cannot_start_takes_the_world_down_too(world_size: int):
    run = tiny_run(tensor_model_parallel_size=2, world_size=world_size)
    refusal = pytest.raises((ValueError, RuntimeError), match=r"not a multiple of tp 2|not divisible by 2")
    with refusal, start_world(run, CpuPlatform()):
        raise AssertionError("one process has no two tensor-parallel ranks")
    assert_nothing_is_left()


def test_layouts_follow_each_other_among_connected_processes():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    connected = group_threads()
    try:
        for seed in (3, 4):
            with start_layout(tiny_run(seed=seed), CpuPlatform()) as world:
                assert world.grid.world_size == 1 and parallel_state.get_tensor_model_parallel_world_size() == 1
                assert torch.initial_seed() == seed
            assert dist.is_initialized() and not parallel_state.is_initialized()
            assert len(dist.distributed_c10d._world.pg_map) == 1  # the world alone: no group is left of the layout
            assert_groups_are_gone(connected)
    finally:
        dist.destroy_process_group()


def test_under_torchrun_its_variables_say_who_this_is(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "LOCAL_RANK": 3, "WORLD_SIZE": 1,
    }  # fmt: skip
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    asked: list[int] = []

    class Asked(CpuPlatform):
        def activate(self, local_rank: int, num_threads: int | None) -> torch.device:
            asked.append(local_rank)
            return super().activate(local_rank, num_threads)

    with start_world(tiny_run(), Asked()) as world:
        assert (world.rank, world.world_size, asked) == (0, 1, [3])


def test_ranks_know_their_place_and_who_logs():
    grid = Grid.of_world(8, tp_size=2, pp_size=2)
    worlds = [World(rank, 8, torch.device("cpu"), grid) for rank in range(8)]
    assert [world.is_logging_rank for world in worlds] == [False] * 7 + [True]
    assert all(world.at == grid.coordinates(world.rank) for world in worlds)
