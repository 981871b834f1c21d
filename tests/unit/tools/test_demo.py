"""The demo is a list of ordinary commands over paths in its own folder; it empties no folder that it did not make."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from megatron_ext.config import load_run_config
from megatron_ext.errors import MegatronExtError
from tools import demo


@pytest.mark.parametrize("size", [demo.FULL, demo.QUICK])
def test_both_training_commands_resolve_and_the_first_stops_half_way(
    size: demo.Size, repo_root: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(repo_root)
    steps = [step for step in demo.plan(Path("demo"), size) if "pretrain_gpt.py" in step.line]
    runs = []
    for step in steps:
        words = shlex.split(step.line)
        assert words[words.index("--nproc-per-node") + 1] == str(step.processes)
        runs.append(load_run_config(words[words.index("pretrain_gpt.py") + 1 :], step.processes).run)
    first, second = runs
    assert (first.parallel.tensor_model_parallel_size, first.parallel.pipeline_model_parallel_size) == (2, 2)
    assert (second.parallel.model_parallel_size, second.data_parallel_size) == (1, 2)
    assert first.train.exit_interval is not None
    assert first.train.exit_interval * 2 == first.train.train_iters == second.train.train_iters
    assert first.checkpoint.save == second.checkpoint.load == second.checkpoint.save
    assert first.model == second.model
    assert first.optim == second.optim


@pytest.mark.parametrize(("gpus", "on_cpu"), [(0, False), (1, True), (2, True), (4, False)])
def test_training_is_on_the_cpu_where_not_every_process_has_a_gpu(gpus: int, on_cpu: bool):
    lines = [step.line for step in demo.plan(Path("demo"), demo.QUICK, gpus) if "pretrain_gpt.py" in step.line]
    assert [line.count("--device cpu") for line in lines] == [int(on_cpu)] * 2


def test_every_script_of_the_demo_exists_and_knows_its_flags(repo_root: Path):
    for step in demo.plan(Path("demo"), demo.FULL):
        scripts = [word for word in shlex.split(step.line) if word.endswith(".py")]
        assert scripts
        assert all((repo_root / script).is_file() for script in scripts)


def test_all_results_stay_inside_the_folder_even_with_spaces_in_its_name():
    out = Path("/somewhere/with spaces/out")
    words = [word for step in demo.plan(out, demo.QUICK) for word in shlex.split(step.line)]
    assert sum(word.startswith(f"{out}/") for word in words) > 10
    assert not [word for word in words if word.startswith(("demo/", "spaces"))]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    kept = tmp_path / "thesis.txt"
    kept.write_text("years of work")
    with pytest.raises(MegatronExtError, match="was not made by the demo"):
        demo.prepare(tmp_path)
    assert kept.read_text() == "years of work"


def test_a_folder_of_an_earlier_demo_is_emptied(tmp_path: Path):
    out = tmp_path / "out"
    demo.prepare(out)
    (out / "old").touch()
    demo.prepare(out)
    assert sorted(path.name for path in out.iterdir()) == [demo.MARK]


def test_a_failing_step_ends_the_demo_with_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    python = shlex.quote(sys.executable)
    lines = [f"{python} -c 'raise SystemExit(3)'", f'{python} -c \'open("{tmp_path}/ran", "w")\'']
    monkeypatch.setattr(demo, "plan", lambda out, size, gpus: [demo.Step(line[-9:], line) for line in lines])
    assert demo.main(["--out", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "ran").exists()
    assert "step 1" in capsys.readouterr().err


def test_the_closing_lines_tell_the_loss_and_the_places(tmp_path: Path):
    (tmp_path / "run").mkdir()
    rows = [
        {"iteration": 1, "lm_loss": 9.0, "consumed_tokens": 2048},
        {"iteration": 2, "lm_loss": None, "consumed_tokens": 4096},
        {"iteration": 3, "lm_loss": 6.5, "consumed_tokens": 6144},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = demo.closing(tmp_path, 90)  # twenty steps or fewer: the last one is its own mean
    assert "1.5 minutes" in text
    assert "from 9.00 to 6.50" in text
    assert "6,144 tokens" in text


def test_cores_are_shared_out_and_no_hub_is_asked():
    environment = demo.environment(1000)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
