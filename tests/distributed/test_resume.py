"""Law L2: a run stopped anywhere and resumed equals the uninterrupted one; another layout starts from its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_ext.checkpoint.full import open_full
from tests.distributed.processes import run_worker
from tests.distributed.resume_worker import OTHER_LAYOUT, SAME_LAYOUT
from tests.distributed.tiny import write_dataset

pytestmark = pytest.mark.dist

KILLS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("data") / "counting"
    write_dataset(prefix)
    return prefix


# one process a case: gloo's threads stay in a process that opens many worlds, and slow it down
@pytest.mark.parametrize("name", SAME_LAYOUT)
def test_stopped_at_every_step_and_resumed_is_bit_equal(data: Path, tmp_path: Path, name: str):
    run_worker("tests.distributed.resume_worker", 2, [name, str(data), str(tmp_path), "2"])


@pytest.mark.parametrize("name", OTHER_LAYOUT)
def test_resumed_under_every_other_layout_starts_from_the_bit_equal_state(data: Path, tmp_path: Path, name: str):
    processes = OTHER_LAYOUT[name][0]
    run_worker("tests.distributed.resume_worker", processes, [name, str(data), str(tmp_path), str(processes)])


def test_killed_at_random_moments_is_bit_equal(data: Path, tmp_path: Path):
    """SIGKILL all ranks at KILLS random moments (start-up, steps, saves, evaluations), start again each time."""
    for name, kills in (("undisturbed", 0), ("killed", KILLS)):
        run_worker("tests.distributed.kill_worker", 1, [str(data), str(tmp_path / name), str(kills)])
    lives = json.loads((tmp_path / "killed" / "kills.json").read_text(encoding="utf-8"))
    assert len(lives) == KILLS
    assert len({life["checkpoint"] for life in lives}) > KILLS // 2, f"the kills hit too few places: {lives}"
    metrics = [(tmp_path / name / "run" / "metrics.jsonl").read_text("utf-8") for name in ("undisturbed", "killed")]
    one, other = ([without_times(line) for line in text.splitlines()] for text in metrics)
    assert one == other
    newest = [open_full(tmp_path / name / "run") for name in ("undisturbed", "killed")]
    for name in newest[0].names():
        assert torch.equal(newest[0].read(name), newest[1].read(name)), name


def without_times(line: str) -> dict:
    record = json.loads(line)
    times = ("iteration_time_s", "tokens_per_s", "tflops_per_rank")
    return {name: value for name, value in record.items() if name not in times}
