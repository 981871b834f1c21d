"""`--help` of every command answers at once: nothing heavy is imported before the arguments are parsed.

Measured as what is imported, not as time: a loaded machine is slow, an import is a fact.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source_files import shipped_sources

HEAVY = {"torch", "megatron", "transformers", "tensorboard", "pyarrow", "matplotlib", "scipy", "pandas"}
LIGHT_IMPORTS = ["megatron_ext", "megatron_ext.config", "megatron_ext.errors", "megatron_ext.log"]
# Not for users: run by a command in an environment that it makes, or by setuptools.
NO_HELP = {"setup.py"}


def commands() -> list[str]:
    """Every file that can be run: it has a main guard."""
    guarded = [
        source.path for source in shipped_sources() if re.search(r"^if __name__ == .__main__.:", source.text, re.M)
    ]
    return sorted(set(guarded) - NO_HELP)


def imported_modules(arguments: list[str], cwd: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The finished process, and every module that it imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    timing = re.findall(r"^import time:\s*\d+ \|\s*\d+ \|\s*([\w.]+)$", result.stderr, re.M)
    return result, set(timing)


def heavy(modules: set[str], also: frozenset[str] = frozenset()) -> list[str]:
    return sorted({name.partition(".")[0] for name in modules} & (HEAVY | also))


@pytest.mark.parametrize("command", commands())
def test_help_imports_nothing_heavy(command: str, repo_root: Path):
    result, modules = imported_modules([command, "--help"], repo_root)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.startswith("usage:")
    assert "argparse" in modules  # the measurement itself works
    assert not heavy(modules), f"{command} --help imports {heavy(modules)}"


@pytest.mark.parametrize("command", commands())
def test_an_unknown_flag_is_refused_without_a_traceback(command: str, repo_root: Path):
    result, modules = imported_modules([command, "--no-such-flag-anywhere", "1"], repo_root)
    assert result.returncode in (1, 2), result.stderr[-2000:]
    message = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert not any("Traceback" in line for line in message), "\n".join(message)
    assert not heavy(modules), f"{command} imports {heavy(modules)} before it refuses a flag"


@pytest.mark.parametrize("module", LIGHT_IMPORTS)
def test_light_packages_import_neither_torch_nor_numpy(module: str, repo_root: Path):
    result, modules = imported_modules(["-c", f"import {module}"], repo_root)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not heavy(modules, frozenset({"numpy"}))
