"""The installation: pins that fit what is asked for, and an extension that may be missing without harm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.source_files import ROOT, tracked_files


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    rows = [line.partition("#")[0].strip() for line in lines]
    return {canonicalize_name(row.partition("==")[0]): row.partition("==")[2] for row in rows if "==" in row}


def declared(key: str) -> list[Requirement]:
    """Requirements of the installed project: those without an extra, or those of one extra."""
    found = [Requirement(text) for text in metadata.requires("megatron-ext") or []]
    extra = f'extra == "{key}"'
    return [item for item in found if (extra in str(item.marker)) == bool(key) and (key or item.marker is None)]


@pytest.mark.parametrize(
    ("key", "files"), [("", ["cpu.txt"]), ("plot", ["cpu.txt"]), ("ray", ["ray.txt"]), ("dev", ["cpu.txt", "dev.txt"])]
)
def test_every_requirement_is_pinned_to_a_version_that_satisfies_it(key: str, files: list[str]):
    pinned = {name: version for file in files for name, version in pins(file).items()}
    assert declared(key)
    for requirement in declared(key):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_this_environment_holds_the_pinned_versions():
    wrong = {}
    for file in ("cpu.txt", "ray.txt", "dev.txt"):
        for name, version in pins(file).items():
            installed = metadata.version(name).partition("+")[0]
            if installed != version:
                wrong[name] = f"{installed}, pinned {version}"
    assert not wrong


def test_pins_are_exact_and_the_corpus_archive_has_a_checksum():
    for path in tracked_files():
        if path.startswith("requirements/") and path != "requirements/gpu.txt":
            for line in (ROOT / path).read_text(encoding="utf-8").splitlines():
                assert (
                    not line or line.startswith(("#", "-r ")) or re.fullmatch(r"[\w.\[\]-]+==[\w.]+( --hash=.*)?", line)
                ), line
    assert "--hash=sha256:" in (ROOT / "requirements" / "corpus.txt").read_text(encoding="utf-8")


def test_no_requirement_is_named_apex():
    for path in ("setup.py", "requirements/cpu.txt", "requirements/gpu.txt", "requirements/dev.txt"):
        assert not re.search(r"^\s*[\"']?apex\b", (ROOT / path).read_text(encoding="utf-8"), re.M)


def build_extension(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder), "--build-temp", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_without_a_compiler_the_build_succeeds_with_a_warning(tmp_path: Path):
    result = build_extension(tmp_path, CC="/bin/false", CXX="/bin/false")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("NumPy and PyTorch take its place") == 2  # of two extensions
    assert not list(tmp_path.rglob("*.so"))


def test_a_machine_that_must_have_the_extension_can_insist(tmp_path: Path):
    result = build_extension(tmp_path, CC="/bin/false", CXX="/bin/false", MEGATRON_EXT_REQUIRE_NATIVE="1")
    assert result.returncode != 0


def test_ci_runs_check_and_test():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert script.index("make check") < script.index("make test")
    assert "set -euo pipefail" in script
