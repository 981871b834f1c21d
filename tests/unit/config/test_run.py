"""Derived numbers against megatron-core's own arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.num_microbatches_calculator import RampupBatchsizeNumMicroBatchesCalculator

from megatron_ext.config import RunConfig


def test_data_parallel_size_and_chunks():
    run = RunConfig().with_values(
        world_size=24, tensor_model_parallel_size=2, pipeline_model_parallel_size=3, num_layers=24
    )
    assert run.data_parallel_size == 4 and run.layers_per_stage == (8, 8, 8)
    assert run.virtual_pipeline_model_parallel_size is None
    assert run.with_values(num_layers_per_virtual_pipeline_stage=2).virtual_pipeline_model_parallel_size == 4
    assert run.with_values(num_virtual_stages_per_pipeline_rank=4).virtual_pipeline_model_parallel_size == 4


def test_global_batch_defaults_to_one_micro_batch_per_rank():
    run = RunConfig().with_values(world_size=4, micro_batch_size=3)
    assert run.global_batch_size == 12 and run.num_microbatches == 1
    assert run.with_values(global_batch_size=36).num_microbatches == 3


def test_longest_sequence_is_the_setting_or_the_sequence_length():
    assert RunConfig().with_values(seq_length=64).max_position_embeddings == 64
    assert RunConfig().with_values(seq_length=64, max_position_embeddings=128).max_position_embeddings == 128


@pytest.mark.parametrize(("bf16", "flag", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, True)])
def test_bf16_implies_fp32_gradients(bf16, flag, expected):
    run = RunConfig().with_values(bf16=bool(bf16), accumulate_allreduce_grads_in_fp32=bool(flag))
    assert run.grad_reduce_in_fp32 is expected


@pytest.mark.parametrize(("dp", "size"), [(1, 40_000_000), (40, 40_000_000), (41, 41_000_000), (1024, 1_024_000_000)])
def test_a_gradient_bucket_grows_with_the_data_parallel_size(dp, size):
    run = RunConfig().with_values(world_size=2 * dp, tensor_model_parallel_size=2, overlap_grad_reduce=True)
    assert run.gradient_bucket_size == size
    assert run.with_values(ddp_bucket_size=10).gradient_bucket_size == 10
    assert run.with_values(overlap_grad_reduce=False).gradient_bucket_size is None


@given(st.integers(0, 6), st.sampled_from([1, 3, 5]), st.integers(1, 3))
def test_runs_of_ordered_sums_do_not_depend_on_the_ranks(halvings, odd, micro_batch_size):
    batch = 2**halvings * odd * micro_batch_size
    run = RunConfig().with_values(micro_batch_size=micro_batch_size, global_batch_size=batch)
    for ranks in (2**level for level in range(halvings + 1)):
        placed = run.with_values(world_size=ranks)
        assert placed.summed_run_at(0) == odd
        parts = placed.with_values(deterministic_data_parallel_parts=ranks)
        assert parts.summed_run_at(0) == parts.num_microbatches_at(0)


def ramped(start, increments, increment, ramp_samples, **more):
    target = start + increments * increment
    return RunConfig().with_values(
        micro_batch_size=1, global_batch_size=target, rampup_batch_size=(start, increment, ramp_samples), **more
    )


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), st.integers(1, 500), st.integers(0, 700))
def test_ramp_up_equals_megatron_core(start, increments, increment, ramp_samples, consumed):
    run = ramped(start, increments, increment, ramp_samples)
    calculator = RampupBatchsizeNumMicroBatchesCalculator(
        run.global_batch_size, 1, 1, False, 0, start, increment, ramp_samples
    )
    calculator.update(consumed, consistency_check=False)
    assert run.global_batch_size_at(consumed) == calculator.get_current_global_batch_size()
    assert run.num_microbatches_at(consumed) == calculator.get()


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), st.integers(1, 300), st.integers(0, 900))
def test_steps_of_a_run_in_samples_are_the_full_batches_that_fit(start, increments, increment, ramp, samples):
    run = ramped(start, increments, increment, ramp, train_samples=max(1, samples))
    consumed = steps = 0
    while consumed + run.global_batch_size_at(consumed) <= max(1, samples):
        consumed += run.global_batch_size_at(consumed)
        steps += 1
    assert run.total_train_iters == steps


def test_steps_without_ramp_up():
    run = RunConfig().with_values(micro_batch_size=2, global_batch_size=8)
    assert run.with_values(train_samples=25).total_train_iters == 3
    assert run.with_values(train_iters=7).total_train_iters == 7
