"""The CPU adapter: every replaced name does on a CPU what megatron-core expects of it, and only on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from megatron_ext.errors import ConfigError
from megatron_ext.platform.cpu import CpuPlatform, adapt, check_megatron_core_version, prefer_throughput, replacements
from tests.unit.platform.cpu_cases import CASES

# Without a CUDA driver torch itself makes a no-op of this one; with one and no device it does not.
HARMLESS_WITHOUT_CUDA = {"torch.cuda.empty_cache"}


@pytest.fixture(autouse=True)
def adapted() -> None:
    adapt()


def replaced_names() -> list[str]:
    names = []
    for owner, name, _ in replacements():
        path = owner.__name__ if isinstance(owner, type) else getattr(owner, "__name__", "")
        names.append(f"{path}.{name}")
    return names


def test_every_replaced_name_has_a_case():
    assert sorted(replaced_names()) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_name_has_its_meaning_on_a_cpu(name: str):
    assert CASES[name]()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the names work without the adapter")
def test_no_replacement_is_needless(repo_root: Path):
    """Unadapted, no name does what its case asks: a case that always holds would test nothing."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.unit.platform.cpu_cases"]
    answer = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) == HARMLESS_WITHOUT_CUDA


def test_adapting_twice_replaces_nothing_again():
    before = torch.Tensor.to, torch.empty, torch.cuda.synchronize
    adapt()
    assert (torch.Tensor.to, torch.empty, torch.cuda.synchronize) == before


def test_every_no_op_is_a_function_of_its_own():
    """torch.compile installs handlers by function identity: one function under two names confuses it."""
    no_ops = [getattr(torch.cuda, name) for name in ("set_device", "synchronize", "empty_cache")]
    assert len({id(function) for function in no_ops}) == len(no_ops)


@pytest.mark.parametrize("installed", ["0.15.0", "0.17.0rc1", "1.16.0", "0.1.6"])
def test_another_minor_version_of_megatron_core_is_refused(installed: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: installed)
    with pytest.raises(ConfigError, match=rf"megatron-core {installed} .*written for megatron-core 0\.16"):
        check_megatron_core_version()


@pytest.mark.parametrize("installed", ["0.16.0", "0.16.1", "0.16.99"])
def test_the_minor_version_it_was_written_for_is_accepted(installed: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: installed)
    check_megatron_core_version()


def test_activation_refuses_before_it_adapts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.17.0")
    monkeypatch.setattr("megatron_ext.platform.cpu.adapt", lambda: pytest.fail("adapted an unread version"))
    with pytest.raises(ConfigError, match=r"0\.17\.0"):
        CpuPlatform().activate(0, 1)


@pytest.mark.parametrize(
    ("asked", "processes", "cores", "threads"), [(3, 2, 8, 3), (None, 2, 8, 4), (None, 16, 8, 1), (None, 1, 8, 8)]
)
def test_threads_are_those_asked_for_or_a_fair_share(
    asked: int | None, processes: int, cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    set_threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", set_threads.append)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert CpuPlatform().activate(5, asked) == torch.device("cpu")
    assert set_threads == [threads]


def policy_after(chosen: int) -> int:
    """Return the policy of a thread that had CHOSEN before it asked for throughput."""

    def ask() -> int:
        os.sched_setscheduler(0, chosen, os.sched_param(0))
        prefer_throughput()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as thread:  # a policy is a thread's own
        return thread.submit(ask).result()


def test_work_is_scheduled_as_batch_work_unless_a_policy_was_chosen():
    assert policy_after(os.SCHED_OTHER) == os.SCHED_BATCH
    assert policy_after(os.SCHED_IDLE) == os.SCHED_IDLE


def test_where_a_sandbox_forbids_it_work_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.sched_getscheduler", lambda _: os.SCHED_OTHER)
    monkeypatch.setattr("os.sched_setscheduler", forbidden)
    prefer_throughput()


def test_peak_memory_is_what_is_held_now_or_more_in_bytes():
    held = 0.9 * psutil.Process().memory_info().rss  # Linux counts pages per CPU and adds them up late
    assert held <= CpuPlatform().peak_memory_bytes() <= psutil.virtual_memory().total
