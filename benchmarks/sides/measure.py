"""Measuring a piece of work in a process of its own: wall time, CPU time, and the peak memory of its process tree."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.002


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Wall seconds, and CPU seconds of this process and its finished children."""
    start, start_cpu = time.perf_counter(), _cpu_seconds()
    work()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - start_cpu}


def run_timed(command: list[str]) -> dict[str, float]:
    """What the last line of a command says as JSON: its own measurement, undisturbed by ours.

    Raises:
        SystemExit: the command failed.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def peak_mib(command: list[str]) -> float:
    """The largest memory of a command's process tree in MiB, pages that processes share counted once.

    It is looked at as often as possible, which takes time of its own: such a run is not a timed one.

    Raises:
        SystemExit: the command failed.
    """
    return _looked_at(command, SECONDS_BETWEEN_LOOKS)[0]


def run_timed_with_peak(command: list[str], seconds_between_looks: float) -> dict[str, float]:
    """As `run_timed`, and `peak_mib` of the same run: for long ones, whose memory need not be looked at often.

    Raises:
        SystemExit: the command failed.
    """
    peak, output = _looked_at(command, seconds_between_looks)
    return {**json.loads(output.splitlines()[-1]), "peak_mib": peak}


def memory_mib(name: str) -> float:
    """This process's memory as Linux names it, in MiB: VmRSS now, RssAnon and RssFile its parts, VmHWM the peak so far.

    Unlike getrusage's peak, this one is not inherited from whoever started the process.

    Raises:
        SystemExit: the system does not tell it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"this system tells no {name}")


def restart_peak() -> None:
    """Let VmHWM begin again at the memory of now."""
    Path("/proc/self/clear_refs").write_text("5")


def _looked_at(command: list[str], pause: float) -> tuple[float, str]:
    """Peak memory in MiB, and what the command says."""
    import psutil

    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, text=True)
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, _proportional_bytes(tree))
            time.sleep(pause)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
        output.seek(0)
        return round(peak / 2**20, 1), output.read()


def _proportional_bytes(tree: object) -> int:
    import psutil

    total = 0
    try:
        for process in [tree, *tree.children(recursive=True)]:  # type: ignore[attr-defined]
            total += process.memory_full_info().pss
    except psutil.Error:  # a process that has just ended
        return 0
    return total


def _cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
