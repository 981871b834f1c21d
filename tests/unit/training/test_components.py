"""A run's parts fit together: gradient buffers by precision and bucket rule, callbacks for the schedules."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

from megatron_ext.model.gpt import build_model
from megatron_ext.parallel.ordered import OrderedDataParallel
from megatron_ext.parallel.world import World
from megatron_ext.training import components
from megatron_ext.training.components import assemble, wrap_data_parallel
from megatron_ext.training.schedule import Schedule, schedule_settings
from tests.unit.tiny import TOKENIZER, VOCAB_SIZE, tiny_components, tiny_run


@pytest.mark.parametrize(
    ("values", "parameter_type", "gradient_type"),
    [
        ({}, torch.float32, torch.float32),
        ({"bf16": True}, torch.bfloat16, torch.float32),
        ({"fp16": True}, torch.float16, torch.float16),
        ({"fp16": True, "accumulate_allreduce_grads_in_fp32": True}, torch.float16, torch.float32),
    ],
)
def test_gradients_are_kept_in_the_type_of_the_precision(
    values: dict, parameter_type: torch.dtype, gradient_type: torch.dtype, world: World
):
    parts = tiny_components(tiny_run(**values), world)
    for parameter in parts.models[0].parameters():
        assert (parameter.dtype, parameter.main_grad.dtype) == (parameter_type, gradient_type)
        assert parameter.main_grad.shape == parameter.shape


def test_models_are_the_chunks_without_their_wrapper(world: World):
    run = tiny_run()
    models = build_model(run, VOCAB_SIZE, "cpu")
    parts = assemble(run, world, models)
    assert parts.models == models and parts.tokenizer is None and parts.datasets is None
    assert [type(chunk) for chunk in parts.chunks] == [DistributedDataParallel]


def test_the_schedules_of_megatron_core_find_their_callables(world: World):
    parts = tiny_components(tiny_run(fp16=True, loss_scale=8.0), world)
    core = parts.models[0].config
    assert core.finalize_model_grads_func is finalize_model_grads
    assert core.grad_scale_func(torch.ones(1)).item() == 8.0
    assert core.no_sync_func == parts.chunks[0].no_sync
    assert core.calculate_per_token_loss


def test_the_schedule_is_that_of_the_run(world: World):
    run = tiny_run(lr=0.5, lr_warmup_iters=3)
    assert tiny_components(run, world).schedule == Schedule.from_settings(schedule_settings(run))


def test_the_vocabulary_is_the_tokenizers(world: World):
    parts = tiny_components(tiny_run(), world)
    assert parts.models[0].true_vocab_size == TOKENIZER.vocab_size == VOCAB_SIZE


def test_only_the_first_chunk_is_cut_into_buckets(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(
        components,
        "DistributedDataParallel",
        lambda config, ddp, model, disable_bucketing: asked.append(disable_bucketing),
    )
    wrap_data_parallel(tiny_run(), [SimpleNamespace(config=None) for _ in range(3)])
    assert asked == [False, True, True]


def test_ordered_sums_have_a_wrapper_of_their_own(world: World):
    parts = tiny_components(tiny_run(deterministic_data_parallel=True), world)
    assert [type(chunk) for chunk in parts.chunks] == [OrderedDataParallel]


def test_several_chunks_get_several_no_sync_callables(world: World):
    run = tiny_run()
    models = [build_model(run, VOCAB_SIZE, "cpu")[0] for _ in range(2)]
    parts = assemble(run, world, models)
    assert models[0].config.no_sync_func == [chunk.no_sync for chunk in parts.chunks]
