"""Rules about batches, the length of the run, precision and recomputation."""

from __future__ import annotations

from megatron_ext.config.rules.registry import given, missing, rule, without_effect
from megatron_ext.config.run import RunConfig

LENGTHS = "train_iters train_samples train_tokens"


@rule(training=True)
def training_settings_are_complete(run: RunConfig) -> str | None:
    """What every training run must say."""
    absent = missing(run, "seq_length micro_batch_size lr")
    return f"training needs {', '.join(absent)}" if absent else None


@rule(training=True)
def length_of_the_run_is_given(run: RunConfig) -> str | None:
    """A run ends somewhere."""
    if given(run, LENGTHS):
        return None
    return "training needs --train-iters or --train-samples (or --train-tokens)"


@rule()
def length_of_the_run_is_given_once(run: RunConfig) -> str | None:
    """Steps, samples or tokens."""
    flags = given(run, LENGTHS)
    return f"{' and '.join(flags)} all say how long to train: give one of them" if len(flags) > 1 else None


@rule(needs="micro_batch_size global_batch_size")
def global_batch_divides_evenly(run: RunConfig) -> str | None:
    """Every data-parallel rank takes equally many whole micro-batches."""
    if run.data_parallel_size == 0 or run.global_batch_size % run.batch_unit == 0:
        return None
    return f"--global-batch-size {run.global_batch_size} is not a multiple of {_unit(run)}"


@rule(needs="rampup_batch_size")
def ramp_up_counts_samples(run: RunConfig) -> str | None:
    """With a growing batch, only samples say how long a run is. Source: Megatron-LM arguments.py."""
    if run.train.train_iters is None:
        return None
    return (
        "--rampup-batch-size needs --train-samples or --train-tokens (and lr lengths in the same) instead of "
        "--train-iters"
    )


@rule(needs="rampup_batch_size micro_batch_size")
def ramp_up_steps_are_whole_batches(run: RunConfig) -> str | None:
    """Every batch size on the way divides over the ranks."""
    start, increment, _ = run.train.rampup_batch_size or (0, 1, 0)
    for name, value in (("START", start), ("INCREMENT", increment)):
        if run.data_parallel_size and value % run.batch_unit:
            return f"--rampup-batch-size: {name} {value} is not a multiple of {_unit(run)}"
    return None


@rule(needs="rampup_batch_size")
def ramp_up_reaches_the_global_batch(run: RunConfig) -> str | None:
    """START grows to --global-batch-size by whole increments."""
    start, increment, _ = run.train.rampup_batch_size or (0, 1, 0)
    target = run.train.global_batch_size
    if target is not None and start < target and (target - start) % increment == 0:
        return None
    return (
        f"--rampup-batch-size: START {start} does not grow by INCREMENT {increment} to "
        f"--global-batch-size {target if target is not None else '(not given)'}"
    )


@rule(needs="num_layers")
def interleaved_micro_batches_divide_over_stages(run: RunConfig) -> str | None:
    """The interleaved schedule takes micro-batches in groups of pp."""
    pp = run.parallel.pipeline_model_parallel_size
    if run.virtual_pipeline_model_parallel_size is None or run.data_parallel_size == 0:
        return None
    sizes = [run.global_batch_size, *(run.train.rampup_batch_size or ())[:2]]
    counts = [size // run.batch_unit for size in sizes]
    if all(count % pp == 0 for count in counts):
        return None
    return (
        f"the interleaved schedule needs micro-batches in multiples of --pipeline-model-parallel-size {pp}; "
        f"batches of {', '.join(map(str, sizes))} make {', '.join(map(str, counts))} per rank"
    )


@rule(needs="micro_batch_size")
def samples_hold_one_batch(run: RunConfig) -> str | None:
    """At least one optimizer step."""
    first = run.train.rampup_batch_size[0] if run.train.rampup_batch_size else run.global_batch_size
    samples = run.samples_of("train")
    if samples is None or samples >= first:
        return None
    if run.train.train_tokens is None:
        return f"--train-samples {samples} is less than one global batch of {first}"
    return f"--train-tokens {run.train.train_tokens} makes {samples} samples, less than one global batch of {first}"


@rule()
def one_half_precision_type(run: RunConfig) -> str | None:
    """Not both at once."""
    return "--bf16 and --fp16 exclude each other" if run.train.bf16 and run.train.fp16 else None


@rule()
def loss_scaling_needs_fp16(run: RunConfig) -> str | None:
    """Only fp16 is scaled."""
    if run.train.fp16:
        return None
    names = "loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis"
    return without_effect(run, names, "without --fp16")


@rule()
def fusing_the_loss_is_not_for_fp16(run: RunConfig) -> str | None:
    """There is nothing to turn off."""
    return without_effect(run, "cross_entropy_loss_fusion", "with --fp16") if run.train.fp16 else None


@rule(needs="loss_scale")
def fixed_loss_scale_stands_alone(run: RunConfig) -> str | None:
    """A fixed scale has no dynamics."""
    names = "initial_loss_scale min_loss_scale loss_scale_window hysteresis"
    return without_effect(run, names, "beside a fixed --loss-scale")


@rule()
def loss_scales_are_ordered(run: RunConfig) -> str | None:
    """The dynamic scale starts above its floor."""
    first, least = run.optim.initial_loss_scale, run.optim.min_loss_scale
    return None if least <= first else f"--min-loss-scale {least} is above --initial-loss-scale {first}"


@rule()
def full_recomputation_says_how(run: RunConfig) -> str | None:
    """Whole layers are recomputed by a method, in a number."""
    if run.train.recompute_granularity != "full":
        return without_effect(run, "recompute_method recompute_num_layers", "without --recompute-granularity full")
    absent = missing(run, "recompute_method recompute_num_layers")
    return f"--recompute-granularity full needs {' and '.join(absent)}" if absent else None


@rule()
def recomputed_modules_need_selective(run: RunConfig) -> str | None:
    """Naming modules is the selective way."""
    if run.train.recompute_granularity == "selective":
        return None
    return without_effect(run, "recompute_modules", "without --recompute-granularity selective")


@rule(needs="num_layers recompute_num_layers")
def recomputed_layers_fit_the_stage(run: RunConfig) -> str | None:
    """No more layers than the largest chunk of a stage holds; groups of layers fill every chunk."""
    number = run.train.recompute_num_layers or 1
    sizes = {layers for stage in run.layers_per_chunk for layers in stage}
    if sizes and number > max(sizes):
        return f"--recompute-num-layers {number} exceeds the {max(sizes)} layers of a pipeline chunk"
    # megatron-core reads layers past the end of a chunk otherwise
    cut = [layers for layers in sorted(sizes) if layers % number]
    if not cut or run.train.recompute_method != "uniform":
        return None
    return f"--recompute-num-layers {number} does not divide the {cut[0]} layers of a pipeline chunk into equal groups"


@rule()
def garbage_interval_needs_manual_gc(run: RunConfig) -> str | None:
    """Python collects by itself otherwise."""
    return None if run.train.manual_gc else without_effect(run, "manual_gc_interval", "without --manual-gc")


@rule()
def evaluation_interval_needs_batches(run: RunConfig) -> str | None:
    """No batches, no evaluation."""
    return without_effect(run, "eval_interval", "with --eval-iters 0") if run.train.eval_iters == 0 else None


@rule()
def evaluating_only_needs_batches(run: RunConfig) -> str | None:
    """--skip-train leaves evaluation, which needs batches."""
    if run.train.skip_train and run.train.eval_iters == 0:
        return "--skip-train with --eval-iters 0 leaves nothing to do"
    return None


@rule()
def lengths_have_the_unit_of_the_run(run: RunConfig) -> str | None:
    """A run counted in samples schedules in samples, and so for steps and tokens."""
    kinds = "lr_decay_{0} lr_warmup_{0} lr_wsd_decay_{0}"
    unit = "iters"
    for other in ("samples", "tokens"):
        unit = other if run.get(f"train_{other}") is not None else unit
    instead = f"--train-{unit}"
    wrong = [
        flag for other in ("iters", "samples", "tokens") if other != unit for flag in given(run, kinds.format(other))
    ]
    if not wrong:
        return None
    return f"{', '.join(wrong)} cannot be used with {instead}: give the lengths in the unit of the run"


def _unit(run: RunConfig) -> str:
    return (
        f"--micro-batch-size {run.train.micro_batch_size} x data-parallel size {run.data_parallel_size} "
        f"= {run.batch_unit}"
    )
