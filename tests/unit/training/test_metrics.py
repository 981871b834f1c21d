"""Each iteration once, each number bit for bit, over kills and resumes."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.errors import MegatronExtError
from megatron_ext.training.metrics import (
    MetricsFile,
    StepResult,
    TrainState,
    encode_record,
    evaluation_record,
    perplexity,
    read_records,
    step_record,
)
from megatron_ext.training.source_losses import Decision, SourceTotals

ISSUE_FIELDS = [
    "iteration",
    "consumed_samples",
    "consumed_tokens",
    "lm_loss",
    "grad_norm",
    "learning_rate",
    "global_batch_size",
    "iteration_time_s",
    "tokens_per_s",
    "tflops_per_rank",
]


def result(**changes: object) -> StepResult:
    values = {"lm_loss": 3.5, "learning_rate": 1e-3, "global_batch_size": 4, "num_tokens": 64, "seconds": 0.5}
    return StepResult(**{**values, **changes})


def write_iterations(path: Path, start: int, end: int) -> None:
    file = MetricsFile(path, start)
    for iteration in range(start + 1, end + 1):
        file.append({"iteration": iteration, "life": start})
    file.close()


def iterations(path: Path) -> list[int]:
    return [record["iteration"] for record in read_records(path)]


def test_state_counts_what_was_done():
    state = TrainState()
    state.advance(result())
    state.advance(result(skipped=True, lm_loss=float("inf")))
    state.advance(result(lm_loss=float("nan"), global_batch_size=8, num_tokens=128))
    assert state == TrainState(
        iteration=3,
        consumed_samples=16,
        consumed_tokens=256,
        skipped_samples=4,
        skipped_iterations=1,
        nan_iterations=2,
    )
    assert state.schedule_step == 12


def test_state_survives_a_checkpoint_and_older_ones():
    state = TrainState(7, 28, 448, 4, 1, 0)
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert TrainState.from_dict({"iteration": 7, "consumed_samples": 28}) == TrainState(7, 28)


def test_the_sources_of_a_blend_are_counted_beside_the_counters():
    state, totals = TrainState(), SourceTotals(np.array([[3, 1], [30, 10], [5, 6]]))
    for _ in range(2):
        state.advance(result(sources=totals))
    assert state.sources.since_report == totals + totals
    assert TrainState.from_dict(state.to_dict()) == TrainState(2, 8, 128), "they have a place of their own"
    assert not state.order_has_changed
    state.sources.decide(Decision(2, 8, (0.5, 0.5), (1.0, 1.0)))
    assert state.order_has_changed
    state.advance(result(sources=totals))
    assert not state.order_has_changed


def test_a_line_has_exactly_the_fields_of_the_issue():
    state = TrainState()
    state.advance(result(grad_norm=1.25))
    line = json.loads(encode_record(step_record(state, result(grad_norm=1.25), 0.75)))
    assert list(line) == ISSUE_FIELDS
    longer = step_record(state, result(seq_length=8), 0.75)
    assert list(longer) == [*ISSUE_FIELDS, "seq_length"]
    assert longer["seq_length"] == 8
    assert list(step_record(state, result(max_z_loss=0.5), 0.75)) == [*ISSUE_FIELDS, "max_z_loss"]
    assert line["tokens_per_s"] == 128.0
    assert line["tflops_per_rank"] == 0.75


def test_every_finite_float_reads_back_bit_for_bit():
    generator = random.Random(0)
    for _ in range(20_000):
        value = struct.unpack("<d", generator.randbytes(8))[0]
        if math.isfinite(value):
            back = json.loads(encode_record({"iteration": 1, "lm_loss": value}))["lm_loss"]
            assert struct.pack("<d", back) == struct.pack("<d", value)


def test_values_json_lacks_become_null_beside_a_flag():
    line = json.loads(encode_record({"iteration": 1, "lm_loss": math.nan, "grad_norm": -math.inf, "other": None}))
    assert line == {
        "iteration": 1,
        "lm_loss": None,
        "lm_loss_is_nan": True,
        "grad_norm": None,
        "grad_norm_is_inf": True,
        "other": None,
    }


def test_evaluation_line():
    line = json.loads(encode_record(evaluation_record(TrainState(5, 20), 2.0)))
    assert line == {"iteration": 5, "consumed_samples": 20, "lm_loss": 2.0, "perplexity": math.exp(2.0)}


@pytest.mark.parametrize("loss", [0.0, 1.0, 19.9])
def test_perplexity_is_the_exponential(loss: float):
    assert perplexity(loss) == math.exp(loss)


def test_perplexity_of_a_large_or_broken_loss_is_printable():
    assert perplexity(1000.0) == math.exp(20.0)
    assert math.isnan(perplexity(math.nan))
    assert perplexity(math.inf) == math.exp(20.0)


def test_resume_drops_what_lies_beyond_and_keeps_each_iteration_once(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_iterations(path, 0, 10)
    write_iterations(path, 6, 8)
    write_iterations(path, 8, 12)
    assert iterations(path) == list(range(1, 13))
    assert [record["life"] for record in read_records(path)] == [0] * 6 + [6] * 2 + [8] * 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_drops_a_torn_last_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_iterations(path, 0, 5)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        done = whole[:cut].count(b"\n")
        assert iterations(path) == list(range(1, done + 1))
        if done:
            write_iterations(path, done, 7)
            assert iterations(path) == list(range(1, 8))


def test_a_line_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for iteration in range(1, 4):
        file.append({"iteration": iteration})
        assert iterations(tmp_path / "metrics.jsonl") == list(range(1, iteration + 1))


def test_no_line_is_lost_by_sigkill(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys; from pathlib import Path; from megatron_ext.training.metrics import MetricsFile\n"
        "file = MetricsFile(Path(sys.argv[1]), 0)\n"
        "for i in range(1, 10**9):\n    file.append({'iteration': i, 'lm_loss': i / 7})\n    print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 200:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = iterations(path)
    assert len(found) >= 200
    assert found == list(range(1, len(found) + 1))


def test_a_second_record_for_an_iteration_is_left_out(tmp_path: Path):
    path = tmp_path / "validation.jsonl"
    file = MetricsFile(path, 0)
    file.append({"iteration": 3, "lm_loss": 1.0})
    file.append({"iteration": 3, "lm_loss": 2.0})
    file.close()
    assert read_records(path) == [{"iteration": 3, "lm_loss": 1.0}]


def test_a_run_from_the_start_moves_another_runs_file_away(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    write_iterations(path, 0, 5)
    before = path.read_bytes()
    write_iterations(path, 0, 2)
    assert iterations(path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.previous").read_bytes() == before


def test_a_run_loaded_from_elsewhere_starts_its_file_in_the_middle(tmp_path: Path):
    write_iterations(tmp_path / "new" / "metrics.jsonl", 40, 42)
    assert iterations(tmp_path / "new" / "metrics.jsonl") == [41, 42]


def test_a_bad_line_inside_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\nnot json\n{"iteration": 3}\n')
    with pytest.raises(MegatronExtError, match=r"metrics.jsonl, line 2 .*not json"):
        read_records(path)
