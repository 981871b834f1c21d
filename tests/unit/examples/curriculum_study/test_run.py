"""The study is a list of ordinary commands: they resolve, and two runs differ in nothing but what is compared."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shlex
import sys
from pathlib import Path

import pytest

from examples.curriculum_study import run as study_run
from megatron_ext.config import load_run_config
from megatron_ext.config.run import RunConfig

STUDY = study_run.Study(Path("out"), None, study_run.FULL, "rarity")


@pytest.fixture(autouse=True)
def in_the_project(repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo_root)


@pytest.fixture
def study(tmp_path: Path) -> study_run.Study:
    """A study whose order files are there: training asks for them."""
    study = dataclasses.replace(STUDY, out=tmp_path / "out")
    assert study_run.prepare(study) == ""
    for order, seed in itertools.product(study_run.ORDERS, (1, 7)):
        study_run.order_file(study.out, order, seed).touch()
    return study


def resolved(study: study_run.Study, run: study_run.Run, samples: int = 5517) -> RunConfig:
    words = shlex.split(study_run.training_step(study, run, samples).line)
    return load_run_config(words[words.index("pretrain_gpt.py") + 1 :], 1).run


@pytest.mark.parametrize("size", [study_run.FULL, study_run.QUICK])
@pytest.mark.parametrize("schedule", study_run.SCHEDULES)
def test_runs_of_a_schedule_differ_in_the_order_alone(study: study_run.Study, size: study_run.Size, schedule: str):
    study = dataclasses.replace(study, size=size)
    runs = [resolved(study, study_run.Run(order, schedule, 7)) for order in study_run.ORDERS]
    assert len({run.data.dataset_order for run in runs}) == len(study_run.ORDERS)
    same = [
        dataclasses.replace(
            run,
            data=dataclasses.replace(run.data, dataset_order="permuted"),
            checkpoint=dataclasses.replace(run.checkpoint, save="x", load="x"),
        )
        for run in runs
    ]
    assert all(run == same[0] for run in same)
    assert (same[0].train.seed, same[0].optim.lr_decay_style, same[0].train.seq_length) == (
        7,
        schedule,
        study_run.SEQ_LENGTH,
    )


@pytest.mark.parametrize("samples", [5517, 5518, 5520, 997])
def test_an_epoch_is_seen_once_with_the_batch_that_leaves_fewest_over(study: study_run.Study, samples: int):
    run = resolved(study, study_run.Run("shuffled", "constant", 1), samples)
    left = samples - run.train.train_iters * run.global_batch_size
    assert left == min(samples % batch for batch in study_run.BATCHES)


def test_the_decaying_rate_ends_near_zero_and_the_constant_one_does_not(study: study_run.Study):
    cosine, constant = (
        resolved(study, study_run.Run("sorted", schedule, 1)).optim for schedule in ("cosine", "constant")
    )
    assert cosine.min_lr == 0 and cosine.lr == constant.lr
    assert constant.lr_decay_style == "constant" and constant.lr_warmup_iters == cosine.lr_warmup_iters > 0


def test_orders_are_built_for_the_same_data_and_split_as_the_runs():
    lines = [step.line for step in study_run.order_steps(STUDY, 3)]
    runs = [study_run.training_step(STUDY, study_run.Run(o, "cosine", 3), 100).line for o in study_run.ORDERS[1:]]
    for line, run in zip(lines, runs, strict=True):
        built, trained = shlex.split(line), shlex.split(run)
        for flag in ("--data-path", "--split"):
            assert built[built.index(flag) + 1] == trained[trained.index(flag) + 1]
        assert built[built.index("--output") + 1] == trained[trained.index("--dataset-order") + 1]


def test_a_run_is_done_when_its_last_evaluation_is_there(study: study_run.Study):
    run = study_run.Run("paced", "cosine", 1)
    path = study.out / "runs" / run.name / "validation.jsonl"
    assert not study_run.training_step(study, run, 100).is_done
    path.parent.mkdir(parents=True)
    for iteration, is_done in ((5, False), (10, True)):
        path.write_text(json.dumps({"iteration": iteration}) + "\n", encoding="utf-8")
        assert study_run.training_step(study, run, 100).is_done is is_done


def test_a_folder_of_another_study_is_refused(study: study_run.Study, tmp_path: Path):
    assert study_run.prepare(study) == ""
    assert "another" in study_run.prepare(dataclasses.replace(study, metric="compression"))
    (tmp_path / "mine").write_text("", encoding="utf-8")
    assert "no study" in study_run.prepare(dataclasses.replace(study, out=tmp_path))


def test_a_step_that_fails_stops_the_study_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = shlex.join([sys.executable, "-c", "raise SystemExit('no such thing')"])
    step = study_run.Step(line, False, tmp_path / "log")
    assert study_run.carry_out(step) == 1
    assert "no such thing" in capsys.readouterr().err
    assert study_run.carry_out(dataclasses.replace(step, is_done=True)) == 0
