"""Checkpoints and their exports, made once per test process by the commands that users type."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = (
    "llama",
    "llama_tied",
    "telechat",
    "yarn",
    "qwen2",
    "baichuan",
    "baichuan_tied",
    "baichuan2",
    "bloom_tied",
    "codegen",
)
EXPORT = "checkpoint_convert/megatron_to_hf.py"
IMPORT = "checkpoint_convert/hf_to_megatron.py"


@functools.cache
def work_folder() -> Path:
    """A folder that lives as long as this process."""
    return Path(_holder().name)


@functools.cache
def _holder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="exports-")


@functools.cache
def checkpoints() -> Path:
    """The folder that holds one folder of checkpoints per case, and tokenizer.model."""
    out = work_folder() / "checkpoints"
    run([sys.executable, "-m", "tests.e2e.random_checkpoint", str(out), *CASES], check=True)
    return out


def exported(case: str) -> Path:
    """The exported folder of a case, in several shards."""
    return exports() / case


@functools.cache
def exports() -> Path:
    """The folder that holds the exported folder of every case."""
    out, source = work_folder() / "exports", checkpoints()
    run_all(EXPORT, *(["--load", source / case, "--save", out / case, "--max-shard-size", "60KB"] for case in CASES))
    return out


def run_all(command: str, *lines: list[object]) -> None:
    """Run one command with several lines of arguments in one process: its imports take longer than its work."""
    module = command.removesuffix(".py").replace("/", ".")
    arguments = [[str(word) for word in line] for line in lines]
    program = f"from {module} import main\nfor line in {arguments}:\n    main(line)"
    run([sys.executable, "-c", program], check=True)


def run_command(command: str, *arguments: object, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command of this project from its root."""
    return run([sys.executable, command, *map(str, arguments)], check=check)


def run(line: list[str], check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a process from the root; with `check` a failure shows its output."""
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done
