"""Rules about short sequences at the beginning (--seq-length-warmup)."""

from __future__ import annotations

from itertools import pairwise

from megatron_ext.config.rules.batch import ramp_up_reaches_the_global_batch
from megatron_ext.config.rules.layout import context_cuts
from megatron_ext.config.rules.registry import rule
from megatron_ext.config.run import RunConfig
from megatron_ext.config.seq_length_warmup import LengthStage, parse_length_stage
from megatron_ext.errors import ConfigError


@rule(needs="seq_length_warmup")
def length_stages_are_readable(run: RunConfig) -> str | None:
    """Each is LENGTH:TOKENS."""
    for word in run.train.seq_length_warmup or ():
        try:
            parse_length_stage(word)
        except ConfigError as error:
            return str(error)
    return None


@rule(needs="seq_length_warmup")
def length_stages_rise(run: RunConfig) -> str | None:
    """Short sequences come first."""
    for before, after in pairwise(_stages(run)):
        if after.length <= before.length:
            return f"--seq-length-warmup: {after.text} follows {before.text}, and lengths must rise"
    return None


@rule(needs="seq_length_warmup seq_length")
def length_stages_cut_samples_into_equal_sequences(run: RunConfig) -> str | None:
    """A sample of --seq-length becomes several sequences of LENGTH, and no token is left over."""
    whole = run.train.seq_length or 0
    for stage in _stages(run):
        if stage.length >= whole or whole % stage.length:
            return f"--seq-length-warmup {stage.text}: {stage.length} is no smaller divisor of --seq-length {whole}"
    return None


@rule(needs="seq_length_warmup")
def length_stages_divide_over_tensor_ranks(run: RunConfig) -> str | None:
    """With sequence parallelism each rank holds an equal part of every sequence."""
    tp = run.parallel.tensor_model_parallel_size
    for stage in _stages(run):
        if run.parallel.sequence_parallel and stage.length % tp:
            return (
                f"--seq-length-warmup {stage.text}: {stage.length} is not a multiple of --tensor-model-parallel-size "
                f"{tp}, as --sequence-parallel needs"
            )
    return None


@rule(needs="seq_length_warmup")
def length_stages_divide_over_context_ranks(run: RunConfig) -> str | None:
    """Each context-parallel rank holds two equal chunks of every sequence."""
    unit = run.sequence_unit
    for stage in _stages(run):
        if run.parallel.context_parallel_size > 1 and stage.length % unit:
            return f"--seq-length-warmup {stage.text}: {stage.length} is not a multiple of {unit}, {context_cuts(run)}"
    return None


@rule(needs="seq_length_warmup seq_length")
def length_stages_hold_a_step(run: RunConfig) -> str | None:
    """A length holds for whole steps, and goes by where a step begins: in a shorter stage none might begin."""
    if run.train.rampup_batch_size and ramp_up_reaches_the_global_batch(run):
        return None
    whole, before = run.train.seq_length or 1, 0
    for stage in _stages(run):
        batch = run.global_batch_size_at(-(-before // whole))
        if stage.tokens < batch * whole:
            return (
                f"--seq-length-warmup {stage.text} is shorter than one global batch of {batch} x --seq-length {whole} "
                f"= {batch * whole} tokens"
            )
        before += stage.tokens
    return None


@rule(needs="seq_length_warmup seq_length")
def length_stages_end_before_the_run(run: RunConfig) -> str | None:
    """Something is left to train at --seq-length."""
    batch, train = run.global_batch_size, run.train
    samples = run.samples_of("train") if train.train_iters is None else train.train_iters * batch
    tokens = sum(stage.tokens for stage in _stages(run))
    if samples is None or tokens <= (samples - batch) * (train.seq_length or 0):
        return None
    return (
        f"--seq-length-warmup takes {tokens} tokens, and the last step of the run begins after "
        f"{(samples - batch) * (train.seq_length or 0)}: none would train at --seq-length {train.seq_length}"
    )


def _stages(run: RunConfig) -> list[LengthStage]:
    """The stages; none of them where one cannot be read, which a rule of its own tells."""
    try:
        return [parse_length_stage(word) for word in run.train.seq_length_warmup or ()]
    except ConfigError:
        return []
