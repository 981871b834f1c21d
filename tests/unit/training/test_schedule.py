"""Both curves against megatron-core's own scheduler, value for value; what a resume may change."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from megatron_ext.config import RunConfig
from megatron_ext.errors import CheckpointError, ConfigError
from megatron_ext.training.schedule import (
    Schedule,
    learning_rate,
    reconcile,
    schedule_settings,
    set_rates,
    weight_decay,
)

BATCH, ITERATIONS = 8, 60
STYLES = [("constant", None), ("linear", None), ("cosine", None), ("inverse-square-root", None)] + [
    ("WSD", style) for style in ("exponential", "linear", "cosine", "minus_sqrt")
]
WARMUPS = [
    {},
    {"lr_warmup_iters": 7},
    {"lr_warmup_iters": 7, "lr_warmup_init": 1e-5},
    {"lr_warmup_fraction": 0.1},
    {"lr_warmup_fraction": 0.37},
]


def run_of(**values: object) -> RunConfig:
    base = {"global_batch_size": BATCH, "train_iters": ITERATIONS, "lr": 3e-4, "min_lr": 2e-5}
    return RunConfig().with_values(**{**base, **values})


def schedule_of(**values: object) -> Schedule:
    return Schedule.from_settings(schedule_settings(run_of(**values)))


def oracle_of(run: RunConfig) -> tuple[object, dict[str, object]]:
    """megatron-core's scheduler with Megatron-LM's own translation of the flags, and its one parameter group."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    optim, train, group = run.optim, run.train, {"wd_mult": 1.0}
    if train.train_iters:
        decay = (optim.lr_decay_iters or train.train_iters) * train.global_batch_size
        warmup, length = optim.lr_warmup_iters * train.global_batch_size, train.train_iters * train.global_batch_size
        wsd = optim.lr_wsd_decay_iters and optim.lr_wsd_decay_iters * train.global_batch_size
    else:
        decay, warmup = optim.lr_decay_samples or train.train_samples, optim.lr_warmup_samples
        length, wsd = train.train_samples, optim.lr_wsd_decay_samples
    if optim.lr_warmup_fraction is not None:
        warmup = optim.lr_warmup_fraction * decay
    given = optim.weight_decay
    scheduler = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]),
        init_lr=optim.lr_warmup_init,
        max_lr=optim.lr,
        min_lr=optim.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=optim.lr_decay_style,
        start_wd=given if optim.start_weight_decay is None else optim.start_weight_decay,
        end_wd=given if optim.end_weight_decay is None else optim.end_weight_decay,
        wd_incr_steps=length,
        wd_incr_style=optim.weight_decay_incr_style,
        wsd_decay_steps=wsd,
        lr_wsd_decay_style=optim.lr_wsd_decay_style,
    )
    return scheduler, group


def assert_same_curves(run: RunConfig) -> None:
    schedule, (oracle, group) = Schedule.from_settings(schedule_settings(run)), oracle_of(run)
    for step in range(int(1.3 * BATCH * ITERATIONS)):  # every sample, so that both sides of each boundary are met
        assert learning_rate(schedule, step) == group["lr"]
        assert weight_decay(schedule, step) == group["weight_decay"]
        oracle.step(1)


@pytest.mark.parametrize(("style", "wsd_style"), STYLES)
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("decay_iters", [None, 40])
def test_learning_rate_is_megatron_cores(style: str, wsd_style: str | None, warmup: dict, decay_iters: int | None):
    wsd = {"lr_wsd_decay_style": wsd_style, "lr_wsd_decay_iters": 11} if wsd_style else {}
    assert_same_curves(run_of(lr_decay_style=style, lr_decay_iters=decay_iters, **warmup, **wsd))


@pytest.mark.parametrize(("style", "wsd_style"), STYLES)
def test_lengths_in_samples(style: str, wsd_style: str | None):
    wsd = {"lr_wsd_decay_style": wsd_style, "lr_wsd_decay_samples": 101} if wsd_style else {}
    by_samples = {"train_iters": None, "train_samples": 479, "lr_decay_samples": 400, "lr_warmup_samples": 33}
    assert_same_curves(run_of(lr_decay_style=style, **by_samples, **wsd))


@pytest.mark.parametrize("style", ["linear", "cosine"])
def test_weight_decay_is_megatron_cores(style: str):
    assert_same_curves(run_of(weight_decay_incr_style=style, start_weight_decay=0.01, end_weight_decay=0.1))


def test_constant_weight_decay_is_the_flag():
    schedule = schedule_of(weight_decay=0.1)
    assert {weight_decay(schedule, step) for step in range(0, 1000, 7)} == {0.1}


def test_landmarks_of_the_curve():
    schedule = schedule_of(lr_decay_style="cosine", lr_warmup_iters=10)
    assert learning_rate(schedule, 0) == 0.0
    assert learning_rate(schedule, 10 * BATCH) == pytest.approx(3e-4, rel=1e-12)
    assert learning_rate(schedule, ITERATIONS * BATCH) == pytest.approx(2e-5, rel=1e-12)
    assert learning_rate(schedule, 10 * ITERATIONS * BATCH) == 2e-5


def test_groups_without_weight_decay_keep_none():
    groups = [{"wd_mult": 1.0}, {"wd_mult": 0.0}, {}]
    schedule = schedule_of(weight_decay=0.1)
    rate = set_rates(groups, schedule, 100)
    assert [group["lr"] for group in groups] == [rate] * 3 == [learning_rate(schedule, 100)] * 3
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1]


def test_settings_survive_a_checkpoint():
    settings = schedule_settings(run_of(lr_warmup_fraction=0.37, lr_decay_style="cosine"))
    assert Schedule.from_settings(json.loads(json.dumps(settings))) == Schedule.from_settings(settings)


def test_equal_settings_and_a_first_start_need_no_decision():
    current = schedule_settings(run_of())
    assert reconcile(None, current, False, False) == current
    assert reconcile(dict(current), current, False, False) == current


def test_a_changed_schedule_is_refused_with_every_value():
    saved, current = schedule_settings(run_of(train_iters=100)), schedule_settings(run_of(lr=1e-4))
    with pytest.raises(CheckpointError) as caught:
        reconcile(saved, current, False, False)
    for part in (
        "--lr",
        "0.0003",
        "0.0001",
        "lr_decay_steps 800 there, 480 now",
        "wd_incr_steps",
        "--override-opt_param",
    ):
        assert part in str(caught.value)
    assert "min_lr" not in str(caught.value)


def test_what_megatron_does_not_compare_is_compared():
    saved, current = schedule_settings(run_of()), schedule_settings(run_of(lr_warmup_init=1e-6))
    with pytest.raises(CheckpointError, match="--lr-warmup-init"):
        reconcile(saved, current, False, False)


def test_override_takes_the_flags_and_use_checkpoint_the_checkpoint():
    saved, current = schedule_settings(run_of(train_iters=100)), schedule_settings(run_of(lr=1e-4))
    assert reconcile(saved, current, True, False) == current
    assert reconcile(saved, current, False, True) == saved
    with pytest.raises(ConfigError, match="exclude each other"):
        reconcile(saved, current, True, True)


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"lr": None}, "--lr is missing"),
        ({"train_iters": None}, "--train-iters or --train-samples"),
        ({"min_lr": 1.0}, "--min-lr"),
        ({"lr_warmup_init": 1.0}, "--lr-warmup-init"),
        ({"lr_warmup_iters": ITERATIONS}, "--lr-warmup-iters"),
        ({"lr_decay_style": "WSD"}, "--lr-wsd-decay-iters"),
        ({"start_weight_decay": 0.2, "end_weight_decay": 0.1}, "--start-weight-decay"),
        ({"start_weight_decay": 0.1, "end_weight_decay": 0.2}, "--weight-decay-incr-style"),
    ],
)
def test_contradictions_are_refused_with_the_flag(values: dict, flag: str):
    with pytest.raises(ConfigError) as caught:
        schedule_of(**values)
    assert flag in str(caught.value)


def deepseek(**values: object) -> Schedule:
    """2000 steps of warm-up, as in DeepSeek LLM, in a run of 100k steps."""
    run = {"train_iters": 100_000, "lr_warmup_iters": 2000, "lr": 4.2e-4, "min_lr": 0.0, "lr_decay_style": "multi-step"}
    return schedule_of(**{**run, **values})


def test_deepseeks_multi_step_curve():
    """arXiv:2401.02954: to the peak over 2000 steps, 31.6 % of it after 80 % of the tokens, 10 % after 90 %."""
    schedule = deepseek()
    expected = {
        0: 0.0, 1000: 2.1e-4, 2000: 4.2e-4, 79_999: 4.2e-4, 80_000: 4.2e-4 * 0.316, 89_999: 4.2e-4 * 0.316,
        90_000: 4.2e-5, 100_000: 4.2e-5, 100_001: 4.2e-5,
    }  # fmt: skip
    assert {step: learning_rate(schedule, step * BATCH) for step in expected} == pytest.approx(expected)


def test_points_of_ones_own_count_from_the_start_of_the_decay_length():
    points = ("1e-1:0.5", "0.3:0.25", "0.70:0.75")
    schedule = deepseek(lr_multi_step_points=points, lr_decay_iters=10, lr_warmup_iters=0)
    rates = [learning_rate(schedule, step * BATCH) / schedule.max_lr for step in range(12)]
    assert rates == [1.0, *[0.5] * 2, *[0.25] * 4, *[0.75] * 5]


def test_multi_step_survives_a_checkpoint_and_a_change_is_told():
    run = {"lr_decay_style": "multi-step", "min_lr": 0.0}
    saved = json.loads(json.dumps(dataclasses.asdict(schedule_of(**run))))
    current = schedule_settings(run_of(**run))
    assert reconcile(saved, current, False, False) == current
    assert Schedule.from_settings(saved) == schedule_of(**run)
    changed = schedule_settings(run_of(**run, lr_multi_step_points=("0.5:0.1",)))
    with pytest.raises(CheckpointError, match="--lr-multi-step-points"):
        reconcile(saved, changed, False, False)
    older = {name: value for name, value in current.items() if name != "lr_multi_steps"}
    assert Schedule.from_settings({**older, "lr_decay_style": "linear"}).lr_multi_steps == ()


def test_lengths_in_tokens_are_those_in_samples():
    """Bloom-176B's: 2048 tokens a sample, 375M tokens of warm-up, decay over 410B, 450B in all; incomplete ones go."""
    tokens = {
        "train_tokens": 450_000_000_000, "lr_decay_tokens": 410_000_000_000, "lr_warmup_tokens": 375_000_000,
        "lr_wsd_decay_tokens": 2048_000 + 2047,
    }  # fmt: skip
    samples = {
        "train_samples": 219_726_562, "lr_decay_samples": 200_195_312, "lr_warmup_samples": 183_105,
        "lr_wsd_decay_samples": 1000,
    }  # fmt: skip
    common = {"train_iters": None, "seq_length": 2048, "lr_decay_style": "WSD", "global_batch_size": 2048}
    by_tokens, by_samples = (run_of(**common, **lengths) for lengths in (tokens, samples))
    assert schedule_settings(by_tokens) == schedule_settings(by_samples)
    assert by_tokens.total_train_iters == by_samples.total_train_iters == 107_288
    ramp = {"rampup_batch_size": (192, 16, 9_765_625)}
    assert by_tokens.with_values(**ramp).total_train_iters == by_samples.with_values(**ramp).total_train_iters
