"""BloomForCausalLM: ALiBi, LayerNorm, a norm after the embedding, tanh GELU of width 4h, biases everywhere.

The fused projection has Megatron's own order, each head's query, key and value, so that no row moves.
"""

from __future__ import annotations

from typing import Any

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.architectures.llama import OURS, UNTIED
from checkpoint_convert.architectures.shared_rules import heads_fill_the_hidden_size, one_key_per_query
from checkpoint_convert.fields import Constant, Field, Implied, Negated, Written
from checkpoint_convert.rows import Row, Same, Vocab

THEIRS = "transformer.h.{i}."


def four_times_as_wide(model: Any) -> str:
    """The class derives the width of the feed-forward block."""
    if model.ffn_size == 4 * model.hidden_size:
        return ""
    return f"ffn_hidden_size is {model.ffn_size}, BloomForCausalLM needs 4 x hidden_size"


def both(ours: str, theirs: str, weight: str, bias: str) -> tuple[Row, Row]:
    """A weight and its bias, the same on either side."""
    return Same(ours + ".weight", theirs + ".weight", weight), Same(ours + ".bias", theirs + ".bias", bias)


BLOOM = Architecture(
    name="bloom",
    hf_class="BloomForCausalLM",
    model_type="bloom",
    weights=(
        Vocab("embedding.word_embeddings.weight", "transformer.word_embeddings.weight"),
        *both("embedding.word_embeddings_layernorm", "transformer.word_embeddings_layernorm", "h", "h"),
        *both(OURS + "input_layernorm", THEIRS + "input_layernorm", "h", "h"),
        *both(OURS + "self_attention.linear_qkv", THEIRS + "self_attention.query_key_value", "3*np*hn h", "3*np*hn"),
        *both(OURS + "self_attention.linear_proj", THEIRS + "self_attention.dense", "h np*hn", "h"),
        *both(OURS + "pre_mlp_layernorm", THEIRS + "post_attention_layernorm", "h", "h"),
        *both(OURS + "mlp.linear_fc1", THEIRS + "mlp.dense_h_to_4h", "f h", "f"),
        *both(OURS + "mlp.linear_fc2", THEIRS + "mlp.dense_4h_to_h", "h f", "h"),
        *both("decoder.final_layernorm", "transformer.ln_f", "h", "h"),
        Vocab("output_layer.weight", "lm_head.weight", when=UNTIED),
    ),
    config=(
        Field("num_layers", "n_layer"),
        Field("hidden_size", "hidden_size"),
        Field("num_attention_heads", "n_head"),
        Implied(("ffn_hidden_size", "kv_channels", "group_query_attention", "num_query_groups")),
        Field("max_position_embeddings", "seq_length", default=2048),
        Field("layernorm_epsilon", "layer_norm_epsilon", default=1e-5),
        Field("init_method_std", "initializer_range", default=0.02),
        Negated(UNTIED, "tie_word_embeddings", default=True),
        Constant("apply_residual_connection_post_layernorm", False),
        Written("hidden_dropout", 0.0),
        Written("attention_dropout", 0.0),
        Written("use_cache", True),
    ),
    requires={
        "position_embedding_type": "alibi",
        "normalization": "LayerNorm",
        "swiglu": False,
        "openai_gelu": True,
        "add_bias_linear": True,
        "embedding_layernorm": True,
    },
    rules=(
        one_key_per_query("BloomForCausalLM"),
        heads_fill_the_hidden_size("BloomForCausalLM"),
        four_times_as_wide,
    ),
    foreign={"quantization_config": "quantised weights cannot be imported"},
)
