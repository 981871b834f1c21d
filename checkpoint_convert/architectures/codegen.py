"""CodeGenForCausalLM, which holds MOSS too: parallel residual, interleaved partial RoPE, LayerNorm, a bias in the head.

The fused projection stands in four blocks of queries, values, keys.
"""

from __future__ import annotations

from typing import Any

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.architectures.bloom import THEIRS, both
from checkpoint_convert.architectures.llama import OURS, UNTIED
from checkpoint_convert.architectures.shared_rules import heads_fill_the_hidden_size, one_key_per_query
from checkpoint_convert.fields import Constant, Field, Implied, Negated, RotaryDimension, Written
from checkpoint_convert.rows import BlockedQVK, Same, Vocab


def heads_in_four_blocks(model: Any) -> str:
    """The class cuts its fused projection into four."""
    if model.num_attention_heads % 4 == 0:
        return ""
    return f"num_attention_heads is {model.num_attention_heads}, CodeGenForCausalLM needs a multiple of 4"


CODEGEN = Architecture(
    name="codegen",
    hf_class="CodeGenForCausalLM",
    model_type="codegen",
    weights=(
        Vocab("embedding.word_embeddings.weight", "transformer.wte.weight"),
        *both(OURS + "input_layernorm", THEIRS + "ln_1", "h", "h"),
        BlockedQVK(OURS + "self_attention.linear_qkv.weight", THEIRS + "attn.qkv_proj.weight"),
        Same(OURS + "self_attention.linear_proj.weight", THEIRS + "attn.out_proj.weight", "h np*hn"),
        *both(OURS + "mlp.linear_fc1", THEIRS + "mlp.fc_in", "f h", "f"),
        *both(OURS + "mlp.linear_fc2", THEIRS + "mlp.fc_out", "h f", "h"),
        *both("decoder.final_layernorm", "transformer.ln_f", "h", "h"),
        Vocab("output_layer.weight", "lm_head.weight", when=UNTIED),
        Vocab("output_layer.bias", "lm_head.bias", columns=""),
    ),
    config=(
        Field("num_layers", "n_layer"),
        Field("hidden_size", "n_embd"),
        Field("ffn_hidden_size", "n_inner", read="ffn_size", default=None),
        Field("num_attention_heads", "n_head"),
        RotaryDimension(heads="n_head", hidden="n_embd"),
        Implied(("kv_channels", "group_query_attention", "num_query_groups")),
        Field("max_position_embeddings", "n_positions", default=2048),
        Field("layernorm_epsilon", "layer_norm_epsilon", default=1e-5),
        Field("init_method_std", "initializer_range", default=0.02),
        Negated(UNTIED, "tie_word_embeddings", default=False),
        Constant("activation_function", "gelu_new"),
        Written("resid_pdrop", 0.0),
        Written("embd_pdrop", 0.0),
        Written("attn_pdrop", 0.0),
        Written("use_cache", True),
    ),
    requires={
        "position_embedding_type": "rope",
        "rotary_base": 10000.0,
        "rotary_interleaved": True,
        "normalization": "LayerNorm",
        "swiglu": False,
        "openai_gelu": True,
        "parallel_residual": True,
        "add_bias_linear": False,
        "add_mlp_up_bias": True,
        "add_mlp_down_bias": True,
        "add_output_layer_bias": True,
    },
    rules=(
        one_key_per_query("CodeGenForCausalLM"),
        heads_fill_the_hidden_size("CodeGenForCausalLM"),
        heads_in_four_blocks,
    ),
    ignored_hf=(THEIRS + "attn.causal_mask", THEIRS + "attn.bias", THEIRS + "attn.masked_bias"),
    foreign={"quantization_config": "quantised weights cannot be imported"},
)
