"""Qwen2ForCausalLM: Llama with biases of queries, keys and values, and no others."""

from __future__ import annotations

import dataclasses

from checkpoint_convert.architectures.llama import LLAMA
from checkpoint_convert.fields import Biases, Constant

QWEN2 = dataclasses.replace(
    LLAMA,
    name="qwen2",
    hf_class="Qwen2ForCausalLM",
    model_type="qwen2",
    weights=tuple(
        row for row in LLAMA.weights if "linear_qkv" in row.megatron or not row.hf_names[0].endswith(".bias")
    ),
    config=(
        *(row for row in LLAMA.config if not isinstance(row, Biases)),
        Constant("use_sliding_window", False),
    ),
    requires={
        **LLAMA.requires,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "add_attention_output_bias": False,
        "add_mlp_up_bias": False,
        "add_mlp_down_bias": False,
    },
)
