"""Learning rate and weight decay as pure functions of the samples trained on: nothing to step, nothing to restore.

Positions and lengths are in samples, as in Megatron-LM: N iterations mean N * --global-batch-size samples, so that a
batch ramp-up does not bend the curve. `reconcile` is the one thing that a checkpoint has a say in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_ext.config.lr_multi_step import step_points_in_samples
from megatron_ext.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig

# Share of (max_lr - min_lr) left after a share r of the decay.
_DECAY: dict[str, Callable[[float], float]] = {
    "linear": lambda r: 1.0 - r,
    "cosine": lambda r: 0.5 * (math.cos(math.pi * r) + 1.0),
    "exponential": lambda r: (2.0 * math.pow(0.5, r)) - 1.0,
    "minus_sqrt": lambda r: 1.0 - math.sqrt(r),
}
# Share of (end_wd - start_wd) added after a share r of the increase.
_INCREASE: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "cosine": lambda r: 0.5 * (math.cos(math.pi * (1.0 - r)) + 1.0),
}
_FLAGS = {
    "init_lr": "--lr-warmup-init",
    "max_lr": "--lr",
    "min_lr": "--min-lr",
    "lr_warmup_steps": "--lr-warmup-iters/-samples/-tokens/-fraction",
    "lr_decay_steps": "--lr-decay-iters/-samples/-tokens (default: the length of the run)",
    "lr_decay_style": "--lr-decay-style",
    "wsd_decay_steps": "--lr-wsd-decay-iters/-samples/-tokens",
    "lr_wsd_decay_style": "--lr-wsd-decay-style",
    "start_wd": "--start-weight-decay",
    "end_wd": "--end-weight-decay",
    "wd_incr_steps": "the length of the run (--train-iters/-samples/-tokens)",
    "wd_incr_style": "--weight-decay-incr-style",
    "lr_multi_steps": "--lr-multi-step-points",
}


@dataclass(frozen=True)
class Schedule:
    """Both curves, with megatron-core's names; every length in samples.

    `lr_multi_steps` are positions, each with the factor of `max_lr` that holds from it on (multi-step only).

    Raises:
        ConfigError: the values contradict each other; the message names the flags.
    """

    init_lr: float
    max_lr: float
    min_lr: float
    lr_warmup_steps: float
    lr_decay_steps: int
    lr_decay_style: str
    wsd_decay_steps: int | None
    lr_wsd_decay_style: str
    start_wd: float
    end_wd: float
    wd_incr_steps: int
    wd_incr_style: str
    lr_multi_steps: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for holds, what, fix in (
            (0.0 <= self.min_lr <= self.max_lr, f"--min-lr {self.min_lr} is not between 0 and --lr {self.max_lr}", ""),
            (self.init_lr <= self.max_lr, f"--lr-warmup-init {self.init_lr} is above --lr {self.max_lr}", ""),
            (
                0 <= self.lr_warmup_steps < self.lr_decay_steps,
                f"the warm-up, {self.lr_warmup_steps} samples, is not shorter than the decay, {self.lr_decay_steps}",
                "change --lr-warmup-iters (or -samples, -tokens, -fraction) or --lr-decay-iters (or -samples, -tokens)",
            ),
            (
                self.lr_decay_style != "WSD" or bool(self.wsd_decay_steps),
                "--lr-decay-style WSD without the length of its decay",
                "give --lr-wsd-decay-iters, or -samples with --train-samples, or -tokens with --train-tokens",
            ),
            (
                0.0 <= self.start_wd <= self.end_wd,
                f"weight decay does not rise from {self.start_wd} to {self.end_wd}",
                "change --start-weight-decay or --end-weight-decay",
            ),
            (
                self.wd_incr_style != "constant" or self.start_wd == self.end_wd,
                f"constant weight decay cannot go from {self.start_wd} to {self.end_wd}",
                "give --weight-decay-incr-style linear or cosine",
            ),
        ):
            if not holds:
                raise ConfigError(what, fix=fix)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Schedule:
        """The schedule that `schedule_settings` (or a checkpoint) describes."""
        points = tuple((int(begin), float(factor)) for begin, factor in settings.get("lr_multi_steps", ()))
        return cls(**{**settings, "lr_multi_steps": points})


def schedule_settings(run: RunConfig) -> dict[str, Any]:
    """The schedule as plain values, to build it from, to save in a checkpoint, and to `reconcile` on resume.

    Source: Megatron-LM core_v0.19.0, megatron/training/training.py, `get_optimizer_param_scheduler`.
    """
    optim = run.optim
    if optim.lr is None:
        raise ConfigError("--lr is missing", fix="give the peak learning rate")
    decay, warmup, wsd_decay, whole_run = _lengths_in_samples(run)
    start_wd = optim.weight_decay if optim.start_weight_decay is None else optim.start_weight_decay
    end_wd = optim.weight_decay if optim.end_weight_decay is None else optim.end_weight_decay
    return {
        "init_lr": float(optim.lr_warmup_init),
        "max_lr": float(optim.lr),
        "min_lr": float(optim.min_lr),
        "lr_warmup_steps": warmup,
        "lr_decay_steps": decay,
        "lr_decay_style": optim.lr_decay_style,
        "wsd_decay_steps": wsd_decay,
        "lr_wsd_decay_style": optim.lr_wsd_decay_style,
        "start_wd": float(start_wd),
        "end_wd": float(end_wd),
        "wd_incr_steps": whole_run,
        "wd_incr_style": optim.weight_decay_incr_style,
        "lr_multi_steps": (
            step_points_in_samples(optim.lr_multi_step_points, decay) if optim.lr_decay_style == "multi-step" else []
        ),
    }


def reconcile(saved: dict[str, Any] | None, current: dict[str, Any], override: bool, use_saved: bool) -> dict[str, Any]:
    """The settings that a resumed run follows, from the checkpoint's and the flags'.

    They must agree, because a changed length or rate bends the curve in the middle. `override`
    (--override-opt_param-scheduler) lets the flags win, `use_saved` (--use-checkpoint-opt_param-scheduler) the
    checkpoint. Without a checkpoint (`saved` None) the flags hold.

    Raises:
        CheckpointError: they differ and nothing says which wins; every differing value is named.
        ConfigError: both winners were asked for.
    """
    if override and use_saved:
        raise ConfigError(
            "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler exclude each other",
            "the first lets the flags win, the second the checkpoint",
        )
    if saved is None or override:
        return dict(current)
    differing = [name for name, value in current.items() if saved.get(name, value) != value]
    if not differing:
        return dict(current)
    if use_saved:
        return {name: saved.get(name, value) for name, value in current.items()}
    values = "; ".join(f"{name} {saved[name]} there, {current[name]} now ({_FLAGS[name]})" for name in differing)
    raise CheckpointError(
        f"the checkpoint was trained with another learning-rate or weight-decay schedule: {values}",
        "lengths are in samples",
        "give the flags of the first start, or let the new ones win with --override-opt_param-scheduler, "
        "or the checkpoint's with --use-checkpoint-opt_param-scheduler",
    )


def learning_rate(schedule: Schedule, step: float) -> float:
    """The rate of an update made after `step` trained samples (`TrainState.schedule_step`).

    Linear warm-up from `init_lr`; then the style's decay from `max_lr` to `min_lr`; `min_lr` after its end.
    WSD (warm-up, stable, decay) stays at `max_lr` until the last `wsd_decay_steps` of the decay. Multi-step falls to
    its factors of `max_lr` and stays at the last one.

    Source: megatron-core 0.16.1, optimizer_param_scheduler.py, value for value; cosine: arXiv:1608.03983; WSD:
    arXiv:2404.06395; multi-step: arXiv:2401.02954.
    """
    warmup = schedule.lr_warmup_steps
    if warmup > 0 and step <= warmup:
        return schedule.init_lr + (schedule.max_lr - schedule.init_lr) * float(step) / float(warmup)
    if schedule.lr_decay_style in ("constant", "multi-step"):
        factors = [factor for begin, factor in schedule.lr_multi_steps if step >= begin]
        return schedule.max_lr * (factors[-1] if factors else 1.0)
    if step > schedule.lr_decay_steps:
        return schedule.min_lr
    if schedule.lr_decay_style == "inverse-square-root":
        return max(schedule.min_lr, schedule.max_lr * max(warmup, 1) ** 0.5 / max(step, 1) ** 0.5)
    return schedule.min_lr + _decay_coefficient(schedule, step) * (schedule.max_lr - schedule.min_lr)


def weight_decay(schedule: Schedule, step: float) -> float:
    """The weight decay of an update made after `step` trained samples.

    Source: megatron-core 0.16.1, optimizer_param_scheduler.py, value for value.
    """
    if step > schedule.wd_incr_steps or schedule.wd_incr_style == "constant":
        return schedule.end_wd
    share = float(step) / float(schedule.wd_incr_steps)
    return schedule.start_wd + _INCREASE[schedule.wd_incr_style](share) * (schedule.end_wd - schedule.start_wd)


def set_rates(param_groups: Iterable[dict[str, Any]], schedule: Schedule, step: float) -> float:
    """Write the rate and the weight decay of `step` into every parameter group, before the update; gives the rate.

    A group's own `lr_mult` and `wd_mult` (0 for biases and norms) scale them.
    """
    rate, decay = learning_rate(schedule, step), weight_decay(schedule, step)
    for group in param_groups:
        group["lr"] = rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = decay * group.get("wd_mult", 1.0)
    return rate


def _decay_coefficient(schedule: Schedule, step: float) -> float:
    if schedule.lr_decay_style != "WSD":
        warmup = schedule.lr_warmup_steps
        return _DECAY[schedule.lr_decay_style](float(step - warmup) / float(schedule.lr_decay_steps - warmup))
    wsd_decay_steps = schedule.wsd_decay_steps or 0
    anneal_start = schedule.lr_decay_steps - wsd_decay_steps
    if step <= anneal_start:
        return 1.0
    return _DECAY[schedule.lr_wsd_decay_style](float(step - anneal_start) / float(wsd_decay_steps))


def _lengths_in_samples(run: RunConfig) -> tuple[int, float, int | None, int]:
    """Decay, warm-up, WSD decay and whole run, in samples."""
    optim, train, batch = run.optim, run.train, run.global_batch_size
    if train.train_iters is not None:
        whole_run = train.train_iters * batch
        decay = whole_run if optim.lr_decay_iters is None else optim.lr_decay_iters * batch
        wsd_decay = None if optim.lr_wsd_decay_iters is None else optim.lr_wsd_decay_iters * batch
        warmup: float = optim.lr_warmup_iters * batch
    else:
        samples = run.samples_of("train")
        if samples is None:
            raise ConfigError(
                "the length of the run is missing", fix="give --train-iters or --train-samples (or --train-tokens)"
            )
        whole_run = samples
        decay = run.samples_of("lr_decay") or whole_run
        wsd_decay = run.samples_of("lr_wsd_decay")
        warmup = run.samples_of("lr_warmup") or 0
    if optim.lr_warmup_fraction is not None:
        warmup = optim.lr_warmup_fraction * decay
    return decay, warmup, wsd_decay, whole_run
