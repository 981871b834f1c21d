"""A profile changes nothing that it looks at, counts every moment once, and costs nothing outside its steps."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_ext.parallel.world import World
from megatron_ext.training import profile as module
from megatron_ext.training.components import Components
from megatron_ext.training.hooks import StepContext
from megatron_ext.training.loop import train
from megatron_ext.training.metrics import TrainState, read_records
from megatron_ext.training.profile import (
    BACKWARD,
    DATA,
    FORWARD,
    GRADIENTS,
    HOOKS,
    OPTIMIZER,
    OTHER,
    PIPELINE,
    Profile,
    Stopwatch,
    Timers,
    breakdown,
    breakdown_lines,
    profile_folder,
)
from megatron_ext.training.stop import StopConditions, StopSignals
from tests.unit.tiny import TokenView, tiny_components, tiny_run


class Clock:
    """Time that passes only where a test says so; `waits` counts the waits for the device."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waits = 0.0, 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def wait(self) -> None:
        self.waits += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run_to_end(parts: Components, state: TrainState | None = None) -> TrainState:
    state = state or TrainState()
    train(parts, state, StopConditions(parts.run, state.iteration, time.monotonic(), StopSignals(enabled=False)))
    return state


def profiled(folder: Path, **values: object) -> dict:
    """Settings of a run that times iterations 3 and 4 and traces 5 and 6."""
    steps = {"profile_step_start": 2, "profile_step_end": 4, "train_iters": 7, "eval_iters": 0}
    return {"profile": True, "save": str(folder), **steps, **values}


def read_trace(path: Path) -> dict:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


class TestStopwatch:
    def test_every_moment_counts_once_and_for_the_innermost_phase(self, clock: Clock):
        watch = Stopwatch()
        clock.now += 1
        watch.enter(FORWARD, "forward-compute")
        clock.now += 2
        watch.enter(DATA, "data")
        clock.now += 4
        watch.leave()
        clock.now += 8
        watch.leave()
        clock.now += 16
        watch.charge()
        assert watch.seconds == {
            (OTHER, "between phases"): 17,
            (FORWARD, "forward-compute"): 10,
            (DATA, "data"): 4,
        }
        assert sum(watch.seconds.values()) == clock.now

    def test_what_a_hook_calls_is_the_hooks(self, clock: Clock):
        watch = Stopwatch()
        watch.enter(HOOKS, "evaluation_hook")
        for phase in (FORWARD, DATA):
            watch.enter(phase, phase)
            clock.now += 3
        watch.leave()
        watch.leave()
        watch.leave()
        clock.now += 1
        watch.charge()
        assert {key: value for key, value in watch.seconds.items() if value} == {
            (HOOKS, "evaluation_hook"): 6,
            (OTHER, "between phases"): 1,
        }

    def test_it_waits_for_the_device_before_each_look_at_the_clock(self, clock: Clock):
        watch = Stopwatch(clock.wait)
        watch.enter(FORWARD, "forward-compute")
        watch.leave()
        assert clock.waits == 3


def test_timers_of_megatron_core_are_told_to_the_recorder_without_barriers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.distributed.barrier", lambda *_: pytest.fail("one rank alone would wait for ever"))
    told: list[tuple] = []
    recorder = SimpleNamespace(enter=lambda *begun: told.append(begun), leave=lambda: told.append(()))
    timers = Timers(recorder)
    for name in ("forward-compute", "backward-compute", "backward-send-forward-recv", "backward-send"):
        timers(name, log_level=2).start()
        timers(name).stop()
    timers("all-grads-sync", log_level=1).start(barrier=True)
    timers("all-grads-sync").stop()
    assert told[1::2] == [()] * 5
    assert told[::2] == [
        (FORWARD, "forward-compute"),
        (BACKWARD, "backward-compute"),
        (PIPELINE, "backward-send-forward-recv"),
        (PIPELINE, "backward-send"),
        (None, "all-grads-sync"),
    ]


def test_the_breakdown_is_per_step_and_of_the_whole():
    seconds = {
        (FORWARD, "forward-compute"): 0.5, (BACKWARD, "backward-compute"): 1.0, (OPTIMIZER, "optimizer"): 0.25,
        (OPTIMIZER, "optimizer-inner-step"): 0.15, (GRADIENTS, "all-grads-sync"): 0.06, (OTHER, "x"): 0.04,
    }  # fmt: skip
    record = breakdown(seconds, 11, 2)
    assert record["iterations"] == [11, 12] and record["ms_per_step"] == pytest.approx(1000)
    expected = {
        "forward": 250, "backward": 500, "optimizer": 200, "gradients": 30, "pipeline": 0, "data": 0, "hooks": 0,
        "other": 20,
    }  # fmt: skip
    assert {phase: entry["ms"] for phase, entry in record["phases"].items()} == pytest.approx(expected)
    assert {phase: entry["percent"] for phase, entry in record["phases"].items()} == pytest.approx(
        {phase: ms / 10 for phase, ms in expected.items()}
    )
    assert record["parts"]["optimizer/optimizer-inner-step"] == pytest.approx({"ms": 75, "percent": 7.5})
    lines = breakdown_lines(record)
    assert lines[0].startswith("profile: iterations 11 to 12, 1000.0 ms per step") and len(lines) == 10
    assert lines[1].split() == ["profile:", "forward", "250.0", "ms", "25.0", "%"]
    assert lines[-1] == "profile: outside forward, backward and optimizer: 5.0 %"


def test_the_folder_is_tensorboards_else_that_of_checkpoints_else_here():
    assert profile_folder(tiny_run(tensorboard_dir="t", save="s")) == Path("t/profile")
    assert profile_folder(tiny_run(save="s")) == Path("s/profile")
    assert profile_folder(tiny_run()) == Path("profile")


def numbers(folder: Path) -> list[tuple]:
    return [(record["lm_loss"], record["grad_norm"]) for record in read_records(folder / "metrics.jsonl")]


def test_a_profiled_run_prints_times_writes_a_trace_and_computes_the_same_bits(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """Also with an evaluation within the timed steps and recomputed layers."""
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    values = {"eval_iters": 1, "eval_interval": 3, **recompute}
    runs = {
        "plain": profiled(tmp_path / "plain", profile=False, **values),
        "ours": profiled(tmp_path / "ours", **values),
    }
    weights = {}
    for name, settings in runs.items():
        capsys.readouterr()
        parts = tiny_components(tiny_run(**settings), world, valid=TokenView(1))
        run_to_end(parts)
        weights[name] = [parameter.detach() for parameter in parts.models[0].parameters()]
        assert parts.models[0].config.timers is None and parts.optimizer.config.timers is None
    assert numbers(tmp_path / "ours") == numbers(tmp_path / "plain")
    assert all(ours.equal(plain) for ours, plain in zip(weights["ours"], weights["plain"], strict=True))

    out = capsys.readouterr().out
    folder = tmp_path / "ours" / "profile"
    names = ["step-time-iterations-3-4.json", "trace-rank-0-iterations-5-6.json.gz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert out.count("outside forward, backward and optimizer: ") == 1
    assert all(f" in {folder / name}" in out for name in names)

    times = json.loads((folder / names[0]).read_text())
    phases = times["phases"]
    assert sum(entry["percent"] for entry in phases.values()) == pytest.approx(100)
    assert sum(entry["ms"] for entry in phases.values()) == pytest.approx(times["ms_per_step"])
    assert sum(entry["ms"] for entry in times["parts"].values()) == pytest.approx(times["ms_per_step"])
    assert all((entry["ms"] > 0) == (phase != PIPELINE) for phase, entry in phases.items())
    parts_of_hooks = {name for name in times["parts"] if name.startswith(HOOKS)}
    assert {"hooks/log_line_hook", "hooks/metrics_hook", "hooks/evaluation_hook"} <= parts_of_hooks
    assert {"gradients/zero-gradients", "gradients/all-grads-sync", "optimizer/optimizer-inner-step"} <= set(
        times["parts"]
    )
    assert {"other/sum-losses", "other/between phases"} <= set(times["parts"])

    events = read_trace(folder / names[1])["traceEvents"]
    count = {name: sum(event.get("name") == name and event.get("ph") == "X" for event in events) for name in EVENTS}
    # two iterations of two micro-batches; iteration 6 evaluates one batch of two
    assert count == {**EVENTS, "forward-compute": 4 + 2, "data": 4 + 2}


EVENTS = {
    "iteration 5": 1, "iteration 6": 1, "iteration 7": 0, "forward-compute": 4, "backward-compute": 4, "data": 4,
    "zero-gradients": 2, "finalize-gradients": 2, "optimizer": 2, "metrics_hook": 2,
}  # fmt: skip


def test_without_a_profile_nothing_is_called(world: World, monkeypatch: pytest.MonkeyPatch):
    for name in ("Stopwatch", "Trace", "Timers", "_phase"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a profile began"))
    parts = tiny_components(tiny_run(train_iters=2), world)
    hooks, items, call = [print], iter([1]), len
    assert parts.profile.observe(hooks, 0, print) is hooks
    assert parts.profile.timed_items(items) is items
    assert parts.profile.timed(call, OTHER, "len") is call
    assert isinstance(parts.profile.phase(FORWARD), contextlib.nullcontext)
    assert parts.models[0].config.finalize_model_grads_func.__module__.startswith("megatron.core")
    assert run_to_end(parts).iteration == 2


def on_rank(rank: int, size: int, folder: Path, **values: object) -> tuple[Profile, SimpleNamespace, list[str]]:
    """A profile of one rank of many, a configuration of megatron-core's, and what is said."""
    world = SimpleNamespace(rank=rank, is_logging_rank=rank == size - 1, device=torch.device("cpu"))
    config, said = SimpleNamespace(timers=None), []
    profile = Profile(tiny_run(**profiled(folder, **values)), world, [config])
    return profile, config, said


def step_through(profile: Profile, config: SimpleNamespace, hooks: list) -> list[bool]:
    """Whether megatron-core has timers in each of seven iterations."""
    on = []
    for iteration in range(1, 8):
        on.append(config.timers is not None)
        for hook in hooks:
            hook(StepContext(TrainState(iteration), None))
    return on


@pytest.mark.parametrize(
    ("rank", "ranks", "on", "files"),
    [
        (0, (0,), [5, 6], ["trace-rank-0-iterations-5-6.json.gz"]),
        (1, (0,), [], []),
        (2, (0,), [3, 4], ["step-time-iterations-3-4.json"]),
        (2, (0, 2), [3, 4, 5, 6], ["step-time-iterations-3-4.json", "trace-rank-2-iterations-5-6.json.gz"]),
    ],
)
def test_the_logging_rank_times_and_the_named_ranks_trace(
    rank: int, ranks: tuple, on: list[int], files: list[str], tmp_path: Path
):
    profile, config, said = on_rank(rank, 3, tmp_path, profile_ranks=ranks)
    hooks = profile.observe([], 0, said.append)
    assert (hooks == []) == (not on)
    assert step_through(profile, config, hooks) == [iteration in on for iteration in range(1, 8)]
    folder = tmp_path / "profile"
    assert sorted(path.name for path in folder.iterdir()) == files if files else not folder.exists()
    assert [name for name in files if any(line.endswith(str(folder / name)) for line in said)] == files


def test_the_first_step_of_a_start_can_be_timed(tmp_path: Path):
    profile, config, said = on_rank(0, 1, tmp_path, profile_ranks=(7,))
    hooks = profile.observe([], 2, said.append)
    assert config.timers is not None
    hooks[0](StepContext(TrainState(3), None))
    assert said == [] and config.timers is not None
    hooks[0](StepContext(TrainState(4), None))
    assert said[0].startswith("profile: iterations 3 to 4, ") and config.timers is None


def test_a_start_beyond_the_steps_says_so_and_profiles_nothing(tmp_path: Path):
    profile, config, said = on_rank(0, 1, tmp_path)
    assert profile.observe([], 3, said.append) == []
    assert said == ["warning: nothing is profiled, 3 steps are done and --profile-step-start is 2"]
    assert config.timers is None


@pytest.mark.parametrize(
    ("train_iters", "files"),
    [
        (2, []),
        (3, ["step-time-iterations-3-3.json"]),
        (5, ["step-time-iterations-3-4.json", "trace-rank-0-iterations-5-5.json.gz"]),
    ],
)
def test_a_run_that_ends_early_leaves_what_there_is(
    train_iters: int, files: list[str], world: World, tmp_path: Path, capsys: pytest.CaptureFixture
):
    """As after a signal; the rule about --train-iters does not see those."""
    run = tiny_run(**profiled(tmp_path, train_iters=train_iters))
    run_to_end(tiny_components(run, world))
    assert "warning: the run ended before the profile did, after step 6" in capsys.readouterr().out
    folder = tmp_path / "profile"
    assert sorted(path.name for path in folder.iterdir()) == files
    for name in files:
        if name.startswith("trace"):
            assert read_trace(folder / name)["traceEvents"]
