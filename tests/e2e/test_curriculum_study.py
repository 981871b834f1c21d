"""The study as a user types it, in its quick size: all steps run, and typing it again repeats none of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
def test_the_quick_study_runs_to_its_report_and_skips_what_is_there(repo_root: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "examples/curriculum_study/run.py", "--quick", "--out", str(out)]
    command += ["--orders", "shuffled", "paced", "--schedules", "cosine"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| cosine | shuffled | 1 |" in report and "| cosine | paced | 1 |" in report
    assert all((out / name).is_file() for name in ("loss.png", "scores.png", "orders/paced-seed-1.png"))
    again = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-4000:]
    assert again.stdout.count("done before") == again.stdout.count("$ ") == 9
