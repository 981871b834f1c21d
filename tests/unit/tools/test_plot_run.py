"""The picture of a run, and what is said when there is none."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.training.metrics import MetricsFile, StepResult, TrainState, evaluation_record, step_record
from megatron_ext.training.source_losses import SourceTotals, sources_record


def plot(repo_root: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(repo_root / "tools" / "plot_run.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    state, metrics = TrainState(), MetricsFile(tmp_path / "metrics.jsonl", 0)
    validation = MetricsFile(tmp_path / "validation.jsonl", 0)
    for i in range(1, 21):
        result = StepResult(math.nan if i == 7 else 8 / i, 1e-3, 4, 64, 0.5, grad_norm=None if i == 3 else 1.0)
        state.advance(result)
        metrics.append(step_record(state, result, 0.1))
        if i % 10 == 0:
            validation.append(evaluation_record(state, 9 / i))
    return tmp_path


def test_writes_a_png(repo_root: Path, run_dir: Path):
    done = plot(repo_root, run_dir)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "20 iterations up to 20, loss 0.4" in done.stdout


def test_a_run_without_evaluations_and_another_output(repo_root: Path, run_dir: Path):
    (run_dir / "validation.jsonl").unlink()
    assert plot(repo_root, run_dir, "--output", run_dir / "other.png").returncode == 0
    assert (run_dir / "other.png").stat().st_size > 1000


def test_a_blend_gets_rows_for_the_loss_and_the_share_of_each_dataset(repo_root: Path, run_dir: Path):
    from PIL import Image

    sources = MetricsFile(run_dir / "sources.jsonl", 0)
    for i in (5, 10, 15, 20):
        totals = SourceTotals(np.array([[i, 20 - i], [16 * i, 0], [i << 20, 0]]))
        sources.append(sources_record({"iteration": i, "consumed_samples": 4 * i}, ("easy", "hard"), totals))
    done = plot(repo_root, run_dir)
    assert done.returncode == 0, done.stderr
    width, height = Image.open(run_dir / "loss.png").size
    assert height / width == pytest.approx(6 * 3.25 / 12), "six rows, not four"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl does not exist"),
        ("", "holds no iteration yet"),
        ('{"iteration": 1}\n', "has no lm_loss, grad_norm"),
        ('{"iteration": 1}\n<html>\n{"iteration": 2}\n', "line 2 is not a record"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_paragraph(
    repo_root: Path, tmp_path: Path, content: str | None, message: str
):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    done = plot(repo_root, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_that_cannot_be_written_is_refused(repo_root: Path, run_dir: Path):
    done = plot(repo_root, run_dir, "--output", run_dir / "missing" / "loss.png")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
