"""What the README shows can be typed: commands exist, their flags parse, the layouts hold, the paths are there."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys

import pytest

from megatron_ext.config import load_run_config
from tests.source_files import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join([README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))])


def commands() -> list[str]:
    """Every command in the bash blocks of README and docs, continuation lines joined, comments dropped."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGES, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+", " ", line.partition(" #")[0]).strip() for line in lines if line.strip()]


@functools.cache
def help_text(script: str) -> str:
    result = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout


def test_the_readme_has_commands():
    assert len(commands()) >= 9


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_make_targets_exist(command: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{command.split()[1]}:", makefile, re.M)


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith(".venv/bin/python ")])
def test_flags_of_tools_are_known_to_them(command: str):
    _, script, *words = shlex.split(command)
    known = set(re.findall(r"--[a-z0-9][\w-]*", help_text(script)))
    used = {word for word in words if word.startswith("--")}
    assert used <= known, f"{script} does not know {sorted(used - known)}"


@pytest.mark.parametrize("command", [line for line in commands() if "torchrun" in line])
def test_training_commands_resolve_and_keep_all_rules(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    script = words.index("pretrain_gpt.py")
    processes = int(words[words.index("--nproc-per-node") + 1])
    run = load_run_config(words[script + 1 :], processes).run
    assert run.world_size == processes


@pytest.mark.parametrize("command", [line for line in commands() if "check_config.py --purpose model" in line])
def test_checked_layouts_keep_all_rules(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    assert "model" in words
    load_run_config(words[words.index("model") + 1 :], None, "model")


def test_training_commands_on_the_laptop_and_on_the_node_use_the_same_flags():
    first, second, *_ = (set(re.findall(r"--[\w-]+", line)) for line in commands() if "torchrun" in line)
    assert first <= second


@pytest.mark.parametrize("section", ["Map", "Where do I change X"])
def test_every_path_in_the_tables_exists(section: str):
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    paths = [path for path in re.findall(r"`(\w[\w./-]+)`", text) if "/" in path or path.endswith(".py")]
    assert paths
    homes = ("", "tests", "megatron_ext/config")  # a row of the table may name a file beside the one before it
    assert [path for path in paths if not any((ROOT / home / path).exists() for home in homes)] == []


def test_every_folder_of_the_project_is_on_the_map():
    text = README.partition("## Map\n")[2].partition("\n## ")[0]
    packages = [path for path in sorted((ROOT / "megatron_ext").iterdir()) if (path / "__init__.py").is_file()]
    assert [path.name for path in packages if f"megatron_ext/{path.name}/`" not in text] == []


def test_flags_named_as_different_exist():
    text = README.partition("## Flags that differ")[2].partition("\n## ")[0]
    known = set(re.findall(r"--[a-z0-9][\w-]*", help_text("pretrain_gpt.py")))
    named = set(re.findall(r"`(--[a-z0-9][\w-]*)", text))
    assert named - known - {"--exit-signal-handler"} == set()


def test_links_and_files_named_in_the_examples_exist():
    for path in re.findall(r"--config (\S+)", README):
        if path != "FILE`":
            assert (ROOT / path).is_file(), path
