"""Say what this machine has, what is missing or wrong, and what to do about each.

Exit status 1 when something is fatal, otherwise 0. Nothing is changed and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from megatron_ext.errors import run_command
from megatron_ext.platform.kernels import Kernels, has_triton

PYTHON = (3, 11)
MEGATRON_CORE = "0.16"
TORCH = "2.13"
# What each package is for, told when it is missing.
REQUIRED = {
    "numpy": "arrays",
    "sentencepiece": "tokenizers",
    "tokenizers": "tokenizers",
    "safetensors": "exported weights",
    "tensorboard": "training curves",
    "PyYAML": "configuration files",
    "tqdm": "the progress line",
    "orjson": "reading JSON lines",
    "pyarrow": "Parquet corpora",
    "zstandard": "compressed corpora",
}
MIN_FREE_DISK_GIB = 5
MIN_FREE_MEMORY_GIB = 4  # four processes of the demo at about 0.6 GiB each, and room for the caches
MIN_SHARED_MEMORY_MIB = 256


@dataclass(frozen=True)
class Finding:
    """One line of the report: level is `ok`, `note` (works, could be better), `warning` or `fatal`."""

    level: str
    subject: str
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Installed:
    """What is installed, asked without importing it; tests put other answers in."""

    version: Callable[[str], str | None]
    folders: Callable[[str], list[Path] | None]

    def has(self, module: str) -> bool:
        """Whether the module could be imported."""
        return self.folders(module) is not None


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def module_folders(module: str) -> list[Path] | None:
    """Where a module lies (a package's folders, else the folder of its file); None when there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ()) or [str(Path(spec.origin or "").parent)]
    return [Path(place) for place in places]


def check_python(installed: Installed) -> Iterator[Finding]:
    """The interpreter: 3.11 is what the pins are made for."""
    version, found = ".".join(map(str, sys.version_info[:3])), tuple(sys.version_info[:2])
    if found == PYTHON:
        yield Finding("ok", "python", version)
    elif found < PYTHON:
        yield Finding("fatal", "python", f"{version} is too old", "use Python 3.11: make install PYTHON=python3.11")
    else:
        yield Finding("warning", "python", f"{version} is not what the pins are tested with", "use Python 3.11")


def check_torch(installed: Installed) -> Iterator[Finding]:
    """PyTorch: the tested minor version, and whether a CUDA build sits on a machine without a GPU."""
    version = installed.version("torch")
    if version is None:
        yield Finding("fatal", "torch", "not installed", f"pip install torch=={TORCH}.0, or make install")
    elif not is_minor(version, TORCH):
        yield Finding("warning", "torch", f"{version}; tested with {TORCH}", f"pip install torch=={TORCH}.0")
    else:
        yield Finding("ok", "torch", version)


def check_megatron_core(installed: Installed) -> Iterator[Finding]:
    """megatron-core: the CPU adapter is written for one minor version and refuses another."""
    version = installed.version("megatron-core")
    fix = f"pip install megatron-core=={MEGATRON_CORE}.1"
    if version is None:
        yield Finding("fatal", "megatron-core", "not installed", f"{fix}, or make install")
        return
    if not is_minor(version, MEGATRON_CORE):
        yield Finding("fatal", "megatron-core", f"{version}; the device adapter is written for {MEGATRON_CORE}", fix)
        return
    yield Finding("ok", "megatron-core", version)
    if installed.has("megatron.training"):
        yield Finding(
            "warning",
            "megatron-core",
            "another Megatron-LM checkout is on the import path (it brings megatron.training)",
            "take it off PYTHONPATH, so that megatron.core is the installed one",
        )


def check_transformers(installed: Installed) -> Iterator[Finding]:
    """transformers: 5.3 closed a hole by which a config file could run code."""
    version = installed.version("transformers")
    if version is None:
        yield Finding("fatal", "transformers", "not installed", "make install")
    elif release(version) < (5, 3):
        message = f"{version}; below 5.3 a model's config file can run code (CVE-2026-4372)"
        yield Finding("warning", "transformers", message, "pip install 'transformers>=5.3'")
    else:
        yield Finding("ok", "transformers", version)


def check_required(installed: Installed) -> Iterator[Finding]:
    """The other required packages; psutil apart, because its absence shows up as a hang."""
    if installed.version("psutil") is None:
        message = "not installed; saving a checkpoint would hang without a message"
        yield Finding("fatal", "psutil", message, "pip install psutil")
    missing = {name: use for name, use in REQUIRED.items() if installed.version(name) is None}
    for name, use in missing.items():
        yield Finding("fatal", name, f"not installed ({use})", f"pip install {name}, or make install")
    if not missing:
        yield Finding("ok", "packages", ", ".join(f"{name} {installed.version(name)}" for name in REQUIRED))


def check_kernels(installed: Installed) -> Iterator[Finding]:
    """TransformerEngine and Apex: absent, real, or the packages that only carry their names."""
    have, absent = [], []
    transformer_engine = installed.folders("transformer_engine")
    if transformer_engine is None:
        absent.append("TransformerEngine")
    elif is_empty_transformer_engine(installed, transformer_engine):
        yield Finding(
            "fatal",
            "transformer-engine",
            "only the meta package is installed; importing megatron-core's GPT layers fails with it",
            "pip uninstall transformer-engine; on a CUDA machine: "
            "pip install --no-build-isolation 'transformer-engine[pytorch]'",
        )
    else:
        have.append("TransformerEngine")
    apex = installed.folders("apex")
    if apex is None:
        absent.append("Apex")
    elif not any((folder / "multi_tensor_apply").is_dir() for folder in apex):
        yield Finding(
            "warning",
            "apex",
            "this `apex` is another project (a Pyramid add-on), not NVIDIA's; torch kernels are used",
            "pip uninstall apex",
        )
    else:
        have.append("Apex")
    kernels = " + ".join([*have, "torch"]) + (f" ({', '.join(absent)} not installed)" if absent else "")
    chosen = Kernels.of("TransformerEngine" in have, "Apex" in have, has_triton()).describe()
    yield Finding("ok", "kernels", f"{kernels}; on a GPU {chosen}")


def is_empty_transformer_engine(installed: Installed, folders: list[Path]) -> bool:
    """Whether the compiled PyTorch part is missing, which is all that `pip install transformer-engine` leaves out."""
    compiled = (list(folder.glob("transformer_engine_torch*")) for folder in folders)
    return not installed.has("transformer_engine_torch") and not any(compiled)


def check_extension(installed: Installed) -> Iterator[Finding]:
    """The C++ extension or its NumPy twins."""
    if installed.has("megatron_ext._native"):
        yield Finding("ok", "extension", "compiled (megatron_ext._native)")
        return
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    fix = "make clean install" if compiler else "install a C++17 compiler (g++ or clang++), then make clean install"
    yield Finding("note", "extension", "not compiled; the NumPy twins give the same results, more slowly", fix)


def check_device(installed: Installed) -> Iterator[Finding]:
    """The device that training would use. Imports torch."""
    if not installed.has("torch"):
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Finding("ok", f"gpu {index}", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB; nccl")
        return
    from megatron_ext.platform.kernels import describe_kernels

    yield Finding("ok", "device", f"no GPU: CPU processes over gloo; in bf16 {describe_kernels('cpu')}")
    if torch.version.cuda is not None:
        message = f"a CUDA {torch.version.cuda} build of torch without a GPU; it works and takes several GB of disk"
        yield Finding("note", "torch", message, "a CPU build is smaller: see TORCH_ARGS in the Makefile")


def check_cores(installed: Installed) -> Iterator[Finding]:
    """Cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        yield Finding("note", "cores", "1; the demo's four processes will take turns", "expect the demo to take longer")
    else:
        yield Finding("ok", "cores", str(cores))


def check_memory(installed: Installed) -> Iterator[Finding]:
    """Free memory, shared memory and disk, in the folder where the command runs."""
    if installed.has("psutil"):
        import psutil

        memory = psutil.virtual_memory()
        text = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
        yield limit("memory", memory.available / 2**30, MIN_FREE_MEMORY_GIB, text, "close programs, or use fewer ranks")
    disk = shutil.disk_usage(".").free / 2**30
    yield limit("disk", disk, MIN_FREE_DISK_GIB, f"{disk:.0f} GiB free here", "free some space")
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir():
        mib = shutil.disk_usage(shared_memory).free / 2**20
        fix = "in a container: --shm-size=1g; or train with --num-workers 0"
        yield limit("shared memory", mib, MIN_SHARED_MEMORY_MIB, f"{mib:.0f} MiB free", fix)


def check_network(installed: Installed) -> Iterator[Finding]:
    """Whether the host name resolves; gloo needs an address of its own host."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        fix = f"add `127.0.0.1 {name}` to the hosts file, or export GLOO_SOCKET_IFNAME=lo"
        yield Finding("warning", "network", f"the host name {name} does not resolve; gloo may not start", fix)


CHECKS: tuple[Callable[[Installed], Iterator[Finding]], ...] = (
    check_python,
    check_torch,
    check_megatron_core,
    check_transformers,
    check_required,
    check_kernels,
    check_extension,
    check_device,
    check_cores,
    check_memory,
    check_network,
)


def limit(subject: str, value: float, least: float, text: str, fix: str) -> Finding:
    """`ok`, or a warning when the value is below the least."""
    return Finding("ok", subject, text) if value >= least else Finding("warning", subject, text, fix)


def is_minor(version: str, minor: str) -> bool:
    """Whether `2.13.0+cpu` belongs to `2.13`."""
    return version == minor or version.startswith(minor + ".")


def release(version: str) -> tuple[int, int]:
    """The first two numbers of a version string."""
    major, _, rest = version.partition(".")
    digits = "".join(char if char.isdigit() else " " for char in rest).split()
    return int(major), int(digits[0]) if digits else 0


def examine(installed: Installed) -> list[Finding]:
    """All findings, in the order of CHECKS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [finding for check in CHECKS for finding in check(installed)]


def report(findings: list[Finding]) -> str:
    """The findings as aligned lines, each problem followed by what to do, and one closing line."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<7}  {finding.subject:<{width}}  {finding.message}")
        if finding.fix and finding.level != "ok":
            lines.append(f"{'':<7}  {'':<{width}}  -> {finding.fix}")
    count = {level: sum(finding.level == level for finding in findings) for level in ("fatal", "warning", "note")}
    closing = "ready" if not count["fatal"] else "not ready: the fatal lines come first"
    lines.append(f"{closing} ({count['fatal']} fatal, {count['warning']} warnings, {count['note']} notes)")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Print the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tools/doctor.py", description=__doc__)
    parser.parse_args(argv)
    findings = examine(Installed(installed_version, module_folders))
    order = {"fatal": 0, "warning": 1, "note": 2, "ok": 3}
    print(report(sorted(findings, key=lambda finding: order[finding.level])))
    return int(any(finding.level == "fatal" for finding in findings))


if __name__ == "__main__":
    run_command(main)
