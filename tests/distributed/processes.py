"""Starts a worker module as N gloo processes, without torchrun's start-up, and shows what they said if they fail."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch

FORKED = multiprocessing.get_context("forkserver")
"""Ranks are forked from one process that has imported everything: an import is 4.6 s, two cores share those of all."""

SPAWNED = multiprocessing.get_context("spawn")
"""For GPUs: CUDA does not go on in a fork, and the process to fork from has asked for it."""

FORKED.set_forkserver_preload(["tests.distributed.layouts_worker"])

LAST_WORDS_S = 10.0
"""How long the others may go on after a rank has failed."""


def run_worker(
    module: str, processes: int, arguments: list[str], timeout_s: float = 840.0, on_gpus: bool = False
) -> None:
    """Call `MODULE.main(*ARGUMENTS)` on every rank and wait; any failure fails the test with all output."""
    context = SPAWNED if on_gpus else FORKED
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    alone = on_gpus and processes > torch.cuda.device_count()
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"rank{rank}" for rank in range(processes)]
        ranks = [
            context.Process(
                target=run_rank,
                args=(module, arguments, common | place(rank, processes, alone), output),
            )
            for rank, output in enumerate(outputs)
        ]
        # read by the process to fork from, which starts with the first rank
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
            for process in ranks:
                process.start()
        try:
            wait_for(ranks, timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()
        report = "\n".join(f"--- rank {rank}\n{output.read_text()[-3000:]}" for rank, output in enumerate(outputs))
    assert all(process.exitcode == 0 for process in ranks), report


def place(rank: int, processes: int, alone: bool) -> dict[str, str]:
    """Where RANK is told it runs; ALONE: on a machine of its own, as ranks that share a GPU must say to NCCL.

    NCCL refuses two ranks of one machine on one GPU; as machines they talk through sockets.
    """
    if alone:
        name = f"rank{rank}"
        nccl = {"NCCL_HOSTID": name, "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
        return {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **nccl}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}


def run_rank(module: str, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    """Be one rank: what it prints goes to the file OUTPUT."""
    os.environ |= environment
    warnings.simplefilter("ignore")
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    importlib.import_module(module).main(*arguments)


def wait_for(ranks: Sequence[multiprocessing.process.BaseProcess], timeout_s: float) -> None:
    """Wait until all have ended, or time is out; after one has failed, the others have a moment to say why too."""
    end = time.monotonic() + timeout_s
    while running := [process.sentinel for process in ranks if process.exitcode is None]:
        if any(process.exitcode for process in ranks):
            end = min(end, time.monotonic() + LAST_WORDS_S)
        if not multiprocessing.connection.wait(running, max(0.0, end - time.monotonic())):
            return


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
