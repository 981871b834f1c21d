"""Every setting lands in a megatron-core object or on a list that says who reads it instead."""

import dataclasses

import pytest
import torch

from megatron_ext.config import to_core
from megatron_ext.config.knob import settings_of
from megatron_ext.config.run import SECTIONS, RunConfig
from megatron_ext.errors import ConfigError

BASE = RunConfig().with_values(
    world_size=8,
    num_layers=8,
    hidden_size=64,
    num_attention_heads=4,
    tensor_model_parallel_size=2,
    pipeline_model_parallel_size=2,
    seq_length=32,
    micro_batch_size=1,
    train_iters=10,
    lr=1e-3,
)

# A value for each mapped setting that must change what megatron-core sees, with the settings it needs beside it.
CHANGES = {
    "num_layers": {"num_layers": 4},
    "hidden_size": {"hidden_size": 128},
    "ffn_hidden_size": {"ffn_hidden_size": 100},
    "num_attention_heads": {"num_attention_heads": 8},
    "num_query_groups": {"num_query_groups": 2},
    "kv_channels": {"kv_channels": 32},
    "normalization": {"normalization": "RMSNorm"},
    "layernorm_epsilon": {"layernorm_epsilon": 1e-6},
    "swiglu": {"swiglu": True},
    "openai_gelu": {"openai_gelu": True},
    "add_bias_linear": {"add_bias_linear": False},
    "add_qkv_bias": {"add_qkv_bias": True},
    "hidden_dropout": {"hidden_dropout": 0.0},
    "attention_dropout": {"attention_dropout": 0.0},
    "init_method_std": {"init_method_std": 0.01},
    "tensor_model_parallel_size": {"tensor_model_parallel_size": 1},
    "pipeline_model_parallel_size": {"pipeline_model_parallel_size": 1},
    "num_layers_per_virtual_pipeline_stage": {"num_layers_per_virtual_pipeline_stage": 2},
    "num_virtual_stages_per_pipeline_rank": {"num_virtual_stages_per_pipeline_rank": 2},
    "num_layers_in_first_pipeline_stage": {"num_layers_in_first_pipeline_stage": 3},
    "num_layers_in_last_pipeline_stage": {"num_layers_in_last_pipeline_stage": 3},
    "account_for_embedding_in_pipeline_split": {"account_for_embedding_in_pipeline_split": True, "num_layers": 7},
    "account_for_loss_in_pipeline_split": {"account_for_loss_in_pipeline_split": True, "num_layers": 7},
    "pipeline_model_parallel_layout": {"pipeline_model_parallel_layout": "Et*3|t*5L"},
    "sequence_parallel": {"sequence_parallel": True},
    "context_parallel_size": {"context_parallel_size": 2},
    "use_distributed_optimizer": {"use_distributed_optimizer": True},
    "overlap_grad_reduce": {"overlap_grad_reduce": True},
    "overlap_param_gather": {"overlap_param_gather": True},
    "ddp_bucket_size": {"ddp_bucket_size": 7, "overlap_grad_reduce": True},
    "num_distributed_optimizer_instances": {"num_distributed_optimizer_instances": 2},
    "optimizer": {"optimizer": "sgd"},
    "lr": {"lr": 0.5},
    "min_lr": {"min_lr": 0.25},
    "weight_decay": {"weight_decay": 0.5},
    "clip_grad": {"clip_grad": 2.0},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.5},
    "adam_eps": {"adam_eps": 0.5},
    "sgd_momentum": {"sgd_momentum": 0.5},
    "loss_scale": {"loss_scale": 2.0},
    "initial_loss_scale": {"initial_loss_scale": 2.0},
    "min_loss_scale": {"min_loss_scale": 2.0},
    "loss_scale_window": {"loss_scale_window": 5},
    "hysteresis": {"hysteresis": 5},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "accumulate_allreduce_grads_in_fp32": {"accumulate_allreduce_grads_in_fp32": True},
    "recompute_granularity": {"recompute_granularity": "selective"},
    "recompute_method": {"recompute_method": "block"},
    "recompute_num_layers": {"recompute_num_layers": 1},
    "recompute_modules": {"recompute_modules": ("mlp",)},
}

# Settings of the optimizer section that are schedules: pure functions of ours (training/schedule.py).
SCHEDULES = {
    "lr_decay_style", "lr_decay_iters", "lr_decay_samples", "lr_warmup_iters", "lr_warmup_samples",
    "lr_warmup_fraction", "lr_warmup_init", "lr_wsd_decay_style", "lr_wsd_decay_iters", "lr_wsd_decay_samples",
    "start_weight_decay", "end_weight_decay", "weight_decay_incr_style", "lr_multi_step_points", "lr_decay_tokens",
    "lr_warmup_tokens", "lr_wsd_decay_tokens",
}  # fmt: skip


def seen_by_core(run):
    objects = (to_core.transformer_config(run, "cuda"), to_core.ddp_config(run), to_core.optimizer_config(run))
    values = [(type(o).__name__, f.name, getattr(o, f.name)) for o in objects for f in dataclasses.fields(o)]
    return [value for value in values if "init_method" not in value[1] or value[1] == "init_method_std"]


def test_every_model_parallel_and_optimizer_setting_is_mapped_or_explained():
    for section in ("model", "parallel", "optim"):
        names = set(settings_of(SECTIONS[section]))
        assert names <= set(CHANGES) | set(to_core.UNMAPPED) | SCHEDULES
    assert not set(CHANGES) & set(to_core.UNMAPPED)
    assert all(len(reason) > 8 for reason in to_core.UNMAPPED.values())


@pytest.mark.parametrize("name", CHANGES)
def test_a_mapped_setting_changes_what_megatron_core_sees(name):
    assert seen_by_core(BASE.with_values(**CHANGES[name])) != seen_by_core(BASE)


def test_the_bucket_of_an_overlapped_reduction_is_the_rule_or_the_setting():
    assert to_core.ddp_config(BASE).bucket_size is None
    overlapped = BASE.with_values(overlap_grad_reduce=True)
    assert to_core.ddp_config(overlapped).bucket_size == overlapped.gradient_bucket_size == 40_000_000
    assert to_core.ddp_config(overlapped.with_values(ddp_bucket_size=7)).bucket_size == 7


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("chunks", [None, 2])
def test_what_holds_in_every_run(device, chunks):
    core = to_core.transformer_config(BASE.with_values(num_virtual_stages_per_pipeline_rank=chunks), device)
    assert core.use_cpu_initialization and not core.perform_initialization
    assert core.calculate_per_token_loss and core.deallocate_pipeline_outputs and not core.variable_seq_lengths
    for fusion in (
        "bias_activation_fusion",
        "masked_softmax_fusion",
        "bias_dropout_fusion",
        "apply_rope_fusion",
        "persist_layer_norm",
        "cross_entropy_loss_fusion",
        "tp_comm_overlap",
    ):
        assert getattr(core, fusion) is False
    assert core.gradient_accumulation_fusion is (device == "cuda")
    assert not to_core.transformer_config(
        BASE.with_values(gradient_accumulation_fusion=False), device
    ).gradient_accumulation_fusion
    assert not (core.overlap_p2p_comm and core.batch_p2p_comm)
    if device == "cpu":
        assert not core.overlap_p2p_comm and not core.batch_p2p_comm
    else:
        assert core.overlap_p2p_comm == (chunks is not None)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [({}, torch.float32), ({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16)],
)
def test_one_compute_type_everywhere(precision, dtype):
    run = BASE.with_values(**precision)
    core = to_core.transformer_config(run, "cpu")
    assert core.params_dtype == core.pipeline_dtype == to_core.optimizer_config(run).params_dtype == dtype
    assert to_core.ddp_config(run).grad_reduce_in_fp32 == run.train.bf16


def test_resolved_sizes_are_passed_down():
    core = to_core.transformer_config(BASE.with_values(swiglu=True, hidden_size=256), "cpu")
    assert (core.ffn_hidden_size, core.kv_channels, core.num_query_groups) == (640, 64, 4)
    assert core.gated_linear_unit and core.activation_func is torch.nn.functional.silu
    assert core.use_te_activation_func and not to_core.transformer_config(BASE, "cpu").use_te_activation_func


def test_megatron_cores_refusal_names_our_flags():
    with pytest.raises(ConfigError, match=r"--num-query-groups \(3\) must be .* --tensor-model-parallel-size \(2\)"):
        to_core.transformer_config(BASE.with_values(num_query_groups=3), "cpu")
