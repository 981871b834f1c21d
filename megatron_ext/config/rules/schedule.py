"""Rules about the optimizer and its schedules."""

from __future__ import annotations

from megatron_ext.config.lr_multi_step import parse_step_points
from megatron_ext.config.name_factors import parse_name_factors
from megatron_ext.config.rules.registry import given, missing, rule, without_effect
from megatron_ext.config.run import RunConfig
from megatron_ext.errors import ConfigError

UNITS = ("iters", "samples", "tokens")


@rule(needs="lr")
def learning_rates_are_ordered(run: RunConfig) -> str | None:
    """The peak is the highest."""
    lr = run.optim.lr or 0.0
    for name, value in (("--min-lr", run.optim.min_lr), ("--lr-warmup-init", run.optim.lr_warmup_init)):
        if value > lr:
            return f"{name} {value} is above --lr {lr}"
    return None


@rule(needs="lr_warmup_fraction")
def warm_up_is_given_once(run: RunConfig) -> str | None:
    """A share of the decay, or a length."""
    others = given(run, "lr_warmup_iters lr_warmup_samples lr_warmup_tokens")
    return f"--lr-warmup-fraction and {others[0]} both give the warm-up: give one of them" if others else None


@rule()
def warm_up_is_shorter_than_the_decay(run: RunConfig) -> str | None:
    """Something is left to decay."""
    for unit in UNITS:
        total = run.get(f"train_{unit}")
        end, warm_up = run.get(f"lr_decay_{unit}") or total, run.get(f"lr_warmup_{unit}")
        if end is not None and warm_up >= end:
            return f"--lr-warmup-{unit} {warm_up} is not shorter than the decay, {end} {unit}"
    return None


@rule(needs="seq_length")
def lengths_in_tokens_hold_a_sample(run: RunConfig) -> str | None:
    """They count in whole samples; less than one would count as none."""
    length = run.train.seq_length or 1
    for name in ("train_tokens", "lr_decay_tokens", "lr_warmup_tokens", "lr_wsd_decay_tokens"):
        if 0 < (run.get(name) or 0) < length:
            return f"--{name.replace('_', '-')} {run.get(name)} is less than one sample of --seq-length {length}"
    return None


@rule()
def warm_up_start_needs_a_warm_up(run: RunConfig) -> str | None:
    """The first rate is that of the warm-up."""
    if given(run, "lr_warmup_fraction lr_warmup_iters lr_warmup_samples lr_warmup_tokens"):
        return None
    return without_effect(run, "lr_warmup_init", "without a warm-up; give --lr-warmup-iters")


@rule()
def rate_without_a_last_phase_has_no_floor(run: RunConfig) -> str | None:
    """Nothing decays, or to factors of the peak."""
    style = run.optim.lr_decay_style
    return (
        without_effect(run, "min_lr", f"with --lr-decay-style {style}") if style in ("constant", "multi-step") else None
    )


@rule()
def steps_belong_to_multi_step(run: RunConfig) -> str | None:
    """Other styles have no points."""
    if run.optim.lr_decay_style == "multi-step":
        return None
    return without_effect(run, "lr_multi_step_points", "without --lr-decay-style multi-step")


@rule(needs="lr_multi_step_points")
def step_points_are_readable(run: RunConfig) -> str | None:
    """SHARE:FACTOR, with rising shares."""
    try:
        parse_step_points(run.optim.lr_multi_step_points)
    except ConfigError as error:
        return str(error)
    return None


@rule()
def last_phase_belongs_to_wsd(run: RunConfig) -> str | None:
    """Other styles have one phase."""
    if run.optim.lr_decay_style == "WSD":
        return None
    names = "lr_wsd_decay_style lr_wsd_decay_iters lr_wsd_decay_samples lr_wsd_decay_tokens"
    return without_effect(run, names, "without --lr-decay-style WSD")


@rule(training=True)
def wsd_says_how_long_its_last_phase_is(run: RunConfig) -> str | None:
    """The stable phase ends somewhere."""
    optim = run.optim
    if optim.lr_decay_style != "WSD" or given(run, "lr_wsd_decay_iters lr_wsd_decay_samples lr_wsd_decay_tokens"):
        return None
    return (
        "--lr-decay-style WSD needs --lr-wsd-decay-iters (-samples with --train-samples, -tokens with --train-tokens)"
    )


@rule()
def wsd_last_phase_fits_the_decay(run: RunConfig) -> str | None:
    """Warm-up and last phase do not overlap."""
    for unit in UNITS:
        total = run.get(f"train_{unit}")
        end, last = run.get(f"lr_decay_{unit}") or total, run.get(f"lr_wsd_decay_{unit}") or 0
        warm_up = run.get(f"lr_warmup_{unit}")
        if end is not None and last > 0 and last + warm_up > end:
            return f"--lr-warmup-{unit} {warm_up} + --lr-wsd-decay-{unit} {last} exceed the decay, {end} {unit}"
    return None


@rule()
def constant_weight_decay_has_one_value(run: RunConfig) -> str | None:
    """A start and an end belong to a schedule."""
    if run.optim.weight_decay_incr_style != "constant":
        return None
    names = "start_weight_decay end_weight_decay"
    return without_effect(run, names, "without --weight-decay-incr-style linear or cosine")


@rule()
def weight_decay_schedule_is_complete(run: RunConfig) -> str | None:
    """A schedule goes from a start up to an end."""
    optim = run.optim
    if optim.weight_decay_incr_style == "constant":
        return None
    absent = missing(run, "start_weight_decay end_weight_decay")
    if absent:
        return f"--weight-decay-incr-style {optim.weight_decay_incr_style} needs {' and '.join(absent)}"
    start, end = optim.start_weight_decay or 0.0, optim.end_weight_decay or 0.0
    return None if start <= end else f"--start-weight-decay {start} is above --end-weight-decay {end}"


@rule()
def distributed_optimizer_is_adam_or_lion(run: RunConfig) -> str | None:
    """megatron-core's distributed optimizer takes no SGD, and its flat slices are no matrices for Muon."""
    optimizer = run.optim.optimizer
    if optimizer in ("adam", "lion") or not run.parallel.use_distributed_optimizer:
        return None
    return f"--optimizer {optimizer} does not go with --use-distributed-optimizer, which is for adam and lion"


@rule(needs="num_attention_heads")
def muon_splits_whole_heads(run: RunConfig) -> str | None:
    """Rows of queries, keys and values are told apart group by group."""
    groups, tp = run.model.query_groups, run.parallel.tensor_model_parallel_size
    if run.optim.optimizer != "muon" or not run.optim.muon_split_qkv or groups % tp == 0:
        return None
    return (
        f"--optimizer muon needs whole key/value heads on every rank, --num-query-groups {groups} is not a multiple of "
        f"--tensor-model-parallel-size {tp}: give --muon-no-split-qkv"
    )


@rule()
def optimizer_options_fit_the_optimizer(run: RunConfig) -> str | None:
    """Each update rule has numbers of its own."""
    options = {
        "adam": "adam_beta1 adam_beta2 adam_eps",
        "lion": "lion_beta1 lion_beta2",
        "sgd": "sgd_momentum",
        "muon": "muon_momentum muon_use_nesterov muon_num_ns_steps muon_scale_mode muon_extra_scale_factor "
        "muon_split_qkv",
    }
    used = {"muon": ("muon", "adam")}.get(run.optim.optimizer, (run.optim.optimizer,))
    foreign = " ".join(names for optimizer, names in options.items() if optimizer not in used)
    return without_effect(run, foreign, f"with --optimizer {run.optim.optimizer}")


@rule()
def multipliers_are_readable(run: RunConfig) -> str | None:
    """PATTERN=FACTOR; whether a pattern fits a name is known once the model is built."""
    try:
        parse_name_factors(run.optim.lr_multipliers, "--lr-multipliers")
        parse_name_factors(run.optim.weight_decay_multipliers, "--weight-decay-multipliers")
    except ConfigError as error:
        return str(error)
    return None


@rule(needs="freeze train_only")
def trained_parameters_are_named_in_one_way(run: RunConfig) -> str | None:
    """One flag names what stays, the other what moves."""
    return "--freeze and --train-only exclude each other: give one of them"
