"""The demo as a user types it, in its quick size: every command runs, the loss falls, the export loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
def test_the_quick_demo_runs_from_text_to_a_hugging_face_model(repo_root: Path, tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "tools/demo.py", "--quick", "--out", str(out)]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    rows = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["lm_loss"] < rows[0]["lm_loss"]
    assert (out / "hf" / "config.json").is_file()
    assert list((out / "hf").glob("*.safetensors"))
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "run" / "tensorboard").glob("events.*"))
    assert "Return a new ▸" in result.stdout
