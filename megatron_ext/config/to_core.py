"""The mapping to megatron-core 0.16.1: the only file that builds megatron-core's configuration objects.

Imported after the device adapter is in place; each function takes the device that was chosen ("cpu" or "cuda").
`UNMAPPED` lists the settings that megatron-core never sees, each with who reads it instead.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from megatron_ext.config.run import RunConfig, all_settings
from megatron_ext.errors import ConfigError

Built = TypeVar("Built")

UNMAPPED: dict[str, str] = {
    "max_position_embeddings": "GPTModel's max_sequence_length (model/)",
    "position_embedding_type": "GPTModel's argument and our attention (model/)",
    "rotary_base": "our attention (model/rotary_frequencies.py)",
    "rotary_percent": "our attention (model/rotary_frequencies.py)",
    "rotary_interleaved": "our attention (model/)",
    "rope_scaling_type": "our attention (model/rotary_frequencies.py)",
    "use_rope_scaling": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_factor": "our attention (model/rotary_frequencies.py)",
    "original_max_position_embeddings": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_beta_fast": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_beta_slow": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_low_freq_factor": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_high_freq_factor": "our attention (model/rotary_frequencies.py)",
    "rope_scaling_attention_factor": "our attention (model/rotary_frequencies.py)",
    "add_attention_output_bias": "our layer's projections (model/chosen_bias.py)",
    "add_mlp_up_bias": "our layer's projections (model/chosen_bias.py)",
    "add_mlp_down_bias": "our layer's projections (model/chosen_bias.py)",
    "embedding_layernorm": "our model's embedding (model/embedding_norm.py)",
    "parallel_residual": "our layer (model/parallel_residual.py)",
    "localized_filtering": "our attention (model/localized_filtering.py)",
    "untie_embeddings_and_output_weights": "GPTModel's share_embeddings_and_output_weights (model/)",
    "add_output_layer_bias": "our output layer (model/output_layer.py)",
    "norm_head": "our output layer (model/output_layer.py)",
    "cross_entropy_loss_fusion": "our own, of another kind (model/linear_cross_entropy.py)",
    "neftune_noise_alpha": "our model's embedding (model/embedding_noise.py)",
    "embedding_multiplier": "our GPTModel (model/gpt.py)",
    "logits_multiplier": "our output layer (model/output_layer.py)",
    "make_vocab_size_divisible_by": "padded vocabulary (model/counts.py)",
    "vocab_size": "padded vocabulary (model/counts.py)",
    "padded_vocab_size": "padded vocabulary (model/counts.py)",
    "group_query_attention": "implied by num_query_groups, which is mapped",
    "distributed_backend": "parallel/world.py",
    "distributed_timeout_minutes": "parallel/world.py",
    "deterministic_data_parallel": "parallel/ordered.py, training/step.py",
    "deterministic_data_parallel_parts": "parallel/ordered.py",
    "lr_multipliers": "parameter groups (optim/groups.py)",
    "weight_decay_multipliers": "parameter groups (optim/groups.py)",
    "freeze": "optim/freeze.py",
    "train_only": "optim/freeze.py",
    "lion_beta1": "our update rule (optim/)",
    "lion_beta2": "our update rule (optim/)",
    "muon_momentum": "our update rule (optim/muon.py)",
    "muon_use_nesterov": "our update rule (optim/muon.py)",
    "muon_num_ns_steps": "our update rule (optim/muon.py)",
    "muon_scale_mode": "our update rule (optim/muon.py)",
    "muon_extra_scale_factor": "our update rule (optim/muon.py)",
    "muon_split_qkv": "our update rule (optim/muon.py)",
    "device": "platform/",
    "transformer_impl": "our layers and update rule (platform/kernels.py)",
    "compile": "our norm and SwiGLU (platform/kernels.py)",
    "num_threads": "parallel/world.py",
}

_TANH_GELU = functools.partial(F.gelu, approximate="tanh")
"""arXiv:1606.08415, section 2: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""

_SAME_NAME_IN_OPTIMIZER = (
    "optimizer",
    "lr",
    "min_lr",
    "weight_decay",
    "clip_grad",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "sgd_momentum",
    "loss_scale",
    "initial_loss_scale",
    "min_loss_scale",
    "loss_scale_window",
    "hysteresis",
)


def params_dtype(run: RunConfig) -> torch.dtype:
    """The compute type: bfloat16, float16 or float32."""
    if run.train.bf16:
        return torch.bfloat16
    return torch.float16 if run.train.fp16 else torch.float32


def transformer_config(run: RunConfig, device: str) -> TransformerConfig:
    """The architecture and layout as megatron-core's blocks and schedules read them.

    Weights stay uninitialised (ours are a function of seed, name and index), fusions are off, and the loss is summed
    per token, so that the mean over a batch does not depend on how it is cut.

    Args:
        run: settings that pass `check_rules`.
        device: "cpu" or "cuda", where the model will live.

    Raises:
        ConfigError: megatron-core refuses the combination; its message with our flags in place of its names.
    """
    values = {**_architecture(run), **_layout(run, device), **_computation(run, device)}
    return _build(TransformerConfig, values)


def ddp_config(run: RunConfig) -> DistributedDataParallelConfig:
    """Gradient buffers and their reduction over the data-parallel ranks."""
    parallel = run.parallel
    return _build(
        DistributedDataParallelConfig,
        {
            "grad_reduce_in_fp32": run.grad_reduce_in_fp32,
            "overlap_grad_reduce": parallel.overlap_grad_reduce,
            "overlap_param_gather": parallel.overlap_param_gather,
            "use_distributed_optimizer": parallel.use_distributed_optimizer,
            "num_distributed_optimizer_instances": parallel.num_distributed_optimizer_instances,
            "bucket_size": run.gradient_bucket_size,
            "check_for_nan_in_grad": False,
            "average_in_collective": False,
        },
    )


def optimizer_config(run: RunConfig) -> OptimizerConfig:
    """The update rule, its precision, clipping and loss scaling."""
    optim = run.optim
    values = {name: getattr(optim, name) for name in _SAME_NAME_IN_OPTIMIZER}
    return _build(
        OptimizerConfig,
        {
            **values,
            "fp16": run.train.fp16,
            "bf16": run.train.bf16,
            "params_dtype": params_dtype(run),
            "use_distributed_optimizer": run.parallel.use_distributed_optimizer,
            "overlap_param_gather": run.parallel.overlap_param_gather,
            "log_num_zeros_in_grad": run.logging.log_num_zeros_in_grad,
        },
    )


def _architecture(run: RunConfig) -> dict[str, Any]:
    model = run.model
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_size,
        "num_attention_heads": model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_dim,
        "normalization": model.normalization,
        "layernorm_epsilon": model.layernorm_epsilon,
        "gated_linear_unit": model.swiglu,
        "activation_func": F.silu if model.swiglu else _TANH_GELU if model.openai_gelu else F.gelu,
        # megatron-core's MLP then calls the layer's own function on gate and up together (model/swiglu.py)
        "use_te_activation_func": model.swiglu,
        "add_bias_linear": model.add_bias_linear,
        "add_qkv_bias": model.add_qkv_bias,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "init_method_std": model.init_method_std,
    }


def _layout(run: RunConfig, device: str) -> dict[str, Any]:
    parallel, chunks = run.parallel, run.virtual_pipeline_model_parallel_size
    first, last = parallel.num_layers_in_first_pipeline_stage, parallel.num_layers_in_last_pipeline_stage
    if parallel.pipeline_model_parallel_size == 2 and first is not None:
        # the last has what is left; told so, megatron-core divides by the stages between, of which there are none
        last = None
    overlap = device == "cuda" and chunks is not None
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": chunks,
        "num_layers_in_first_pipeline_stage": first,
        "num_layers_in_last_pipeline_stage": last,
        "account_for_embedding_in_pipeline_split": parallel.account_for_embedding_in_pipeline_split,
        "account_for_loss_in_pipeline_split": parallel.account_for_loss_in_pipeline_split,
        "pipeline_model_parallel_layout": parallel.pipeline_model_parallel_layout,
        "context_parallel_size": parallel.context_parallel_size,
        # Transformer Engine's ring; our own attention gathers keys and values instead (model/context_parallel.py)
        "cp_comm_type": "p2p" if parallel.context_parallel_size > 1 else None,
        "sequence_parallel": parallel.sequence_parallel,
        "pipeline_dtype": params_dtype(run),
        "variable_seq_lengths": False,
        "overlap_p2p_comm": overlap,
        "batch_p2p_comm": device == "cuda" and not overlap,
        "deallocate_pipeline_outputs": True,
        "tp_comm_overlap": False,
    }


def _computation(run: RunConfig, device: str) -> dict[str, Any]:
    train = run.train
    return {
        "use_cpu_initialization": True,
        "perform_initialization": False,
        "calculate_per_token_loss": True,
        "fp16": train.fp16,
        "bf16": train.bf16,
        "params_dtype": params_dtype(run),
        "attention_softmax_in_fp32": True,
        "recompute_granularity": train.recompute_granularity,
        "recompute_method": train.recompute_method,
        "recompute_num_layers": train.recompute_num_layers,
        "recompute_modules": None if train.recompute_modules is None else list(train.recompute_modules),
        "distribute_saved_activations": False,
        "bias_activation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": device == "cuda" and train.gradient_accumulation_fusion,
        "persist_layer_norm": False,
        "cross_entropy_loss_fusion": False,
        "transformer_impl": "local",
    }


def _build(make: Callable[..., Built], values: dict[str, Any]) -> Built:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(**values)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"megatron-core refuses these settings: {_with_our_flags(str(error))}") from error


def _with_our_flags(message: str) -> str:
    known = all_settings()
    names = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    return re.sub(rf"(?<![\w-])(?:self\.)?({names})\b", lambda found: known[found.group(1)].flag, message)
