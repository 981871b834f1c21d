"""The doctor names every known trap with what to do, and fails exactly when something is fatal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import doctor

GOOD = {
    "torch": "2.13.0+cpu",
    "megatron-core": "0.16.1",
    "transformers": "5.23.0",
    "psutil": "7.2.2",
    **dict.fromkeys(doctor.REQUIRED, "1.0"),
}


def machine(versions: dict[str, str], modules: dict[str, list[Path]] | None = None) -> doctor.Installed:
    found = modules or {}
    return doctor.Installed(version=versions.get, folders=found.get)


def levels(findings: list[doctor.Finding], subject: str) -> list[str]:
    return [finding.level for finding in findings if finding.subject == subject]


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_a_good_machine_has_nothing_fatal():
    findings = doctor.examine(machine(GOOD))
    assert not [finding for finding in findings if finding.level == "fatal"]


@pytest.mark.parametrize("name", ["torch", "megatron-core", "transformers", "psutil", *doctor.REQUIRED])
def test_a_missing_required_package_is_fatal_and_the_fix_names_it(name: str):
    found = [finding for finding in doctor.examine(machine(without(name))) if finding.subject == name]
    assert [finding.level for finding in found] == ["fatal"]
    assert "install" in found[0].fix


@pytest.mark.parametrize(
    ("name", "version", "level"),
    [
        ("megatron-core", "0.17.0", "fatal"),
        ("megatron-core", "0.160.0", "fatal"),
        ("megatron-core", "0.16.9", "ok"),
        ("torch", "2.14.0", "warning"),
        ("torch", "2.130.0", "warning"),
        ("transformers", "4.57.6", "warning"),
        ("transformers", "5.2.9", "warning"),
        ("transformers", "5.3.0", "ok"),
    ],
)
def test_versions_outside_the_tested_range_are_told(name: str, version: str, level: str):
    assert levels(doctor.examine(machine(GOOD | {name: version})), name) == [level]


def test_the_wrong_apex_is_told_from_nvidias(tmp_path: Path):
    wrong = doctor.examine(machine(GOOD, {"apex": [tmp_path]}))
    assert levels(wrong, "apex") == ["warning"]
    (tmp_path / "multi_tensor_apply").mkdir()
    right = doctor.examine(machine(GOOD, {"apex": [tmp_path]}))
    assert levels(right, "apex") == []
    assert [finding.message for finding in right if finding.subject == "kernels"] == [
        "Apex + torch (TransformerEngine not installed); on a GPU attention torch, norms Apex, Adam Apex"
    ]


def test_the_empty_transformer_engine_is_told_from_a_real_one(tmp_path: Path):
    empty = doctor.examine(machine(GOOD, {"transformer_engine": [tmp_path]}))
    assert levels(empty, "transformer-engine") == ["fatal"]
    beside = {"transformer_engine": [tmp_path], "transformer_engine_torch": [tmp_path]}
    assert levels(doctor.examine(machine(GOOD, beside)), "transformer-engine") == []
    (tmp_path / "transformer_engine_torch.cpython-311.so").touch()
    assert levels(doctor.examine(machine(GOOD, {"transformer_engine": [tmp_path]})), "transformer-engine") == []


def test_without_optional_kernels_there_is_one_line_for_all():
    found = [finding for finding in doctor.examine(machine(GOOD)) if finding.subject == "kernels"]
    assert [finding.message for finding in found] == [
        "torch (TransformerEngine, Apex not installed); on a GPU attention torch, norms torch, Adam torch"
    ]


def test_a_missing_extension_is_a_note_and_a_compiled_one_is_fine():
    assert levels(doctor.examine(machine(GOOD)), "extension") == ["note"]
    assert levels(doctor.examine(machine(GOOD, {"megatron_ext._native": []})), "extension") == ["ok"]


def test_every_problem_says_what_to_do():
    for name in GOOD:
        for finding in doctor.examine(machine(without(name))):
            assert finding.level == "ok" or finding.fix, finding


def test_main_exits_with_1_only_for_fatal_findings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    cases = [(doctor.examine(machine(GOOD)), 0), (doctor.examine(machine(without("psutil"))), 1)]
    for findings, status in cases:
        monkeypatch.setattr(doctor, "examine", lambda _installed, found=findings: found)
        assert doctor.main([]) == status
        assert ("not ready" in capsys.readouterr().out) == bool(status)


def test_it_runs_on_this_machine(repo_root: Path):
    result = subprocess.run([sys.executable, "tools/doctor.py"], cwd=repo_root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr
