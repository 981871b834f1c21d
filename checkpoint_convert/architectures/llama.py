"""LlamaForCausalLM: rotary positions, RMSNorm, SwiGLU, grouped queries, tied or untied embeddings, any biases.

The class has biases in all projections of attention, or of the feed-forward block, or in none: InternLM has those of
attention; TeleChat has one in the last projection of either, and zeros take the place of the others.

Megatron's rotary table (half-rotation) is the class's own, so no row permutes heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.fields import Biases, Constant, Field, HeadSize, Negated, QueryGroups, Written
from checkpoint_convert.rope_fields import Rope
from checkpoint_convert.rows import QKV, Gated, Same, Vocab, Zeros

UNTIED = "untie_embeddings_and_output_weights"
OURS = "decoder.layers.{i}."
THEIRS = "model.layers.{i}."

QKV_BIAS, OUTPUT_BIAS, UP_BIAS, DOWN_BIAS = range(4)
"""Places in `ModelConfig.biased_projections`."""


def biased(place: int) -> Callable[[Any], bool]:
    """Whether the model has this bias."""
    return lambda model: model.biased_projections[place]


def zero(place: int, beside: int) -> Callable[[Any], bool]:
    """Whether the model lacks this bias, which the class has together with the one `beside`."""
    return lambda model: model.biased_projections[beside] and not model.biased_projections[place]


LLAMA = Architecture(
    name="llama",
    hf_class="LlamaForCausalLM",
    model_type="llama",
    weights=(
        Vocab("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Same(OURS + "input_layernorm.weight", THEIRS + "input_layernorm.weight", "h"),
        QKV(
            OURS + "self_attention.linear_qkv.weight",
            query=THEIRS + "self_attn.q_proj.weight",
            key=THEIRS + "self_attn.k_proj.weight",
            value=THEIRS + "self_attn.v_proj.weight",
        ),
        QKV(
            OURS + "self_attention.linear_qkv.bias",
            query=THEIRS + "self_attn.q_proj.bias",
            key=THEIRS + "self_attn.k_proj.bias",
            value=THEIRS + "self_attn.v_proj.bias",
            columns="",
            when=biased(QKV_BIAS),
        ),
        Zeros(
            tuple(THEIRS + f"self_attn.{kind}_proj.bias" for kind in "qkv"),
            ("np*hn", "ng*hn", "ng*hn"),
            when=zero(QKV_BIAS, beside=OUTPUT_BIAS),
        ),
        Same(OURS + "self_attention.linear_proj.weight", THEIRS + "self_attn.o_proj.weight", "h np*hn"),
        Same(OURS + "self_attention.linear_proj.bias", THEIRS + "self_attn.o_proj.bias", "h", when=biased(OUTPUT_BIAS)),
        Zeros((THEIRS + "self_attn.o_proj.bias",), ("h",), when=zero(OUTPUT_BIAS, beside=QKV_BIAS)),
        Same(OURS + "pre_mlp_layernorm.weight", THEIRS + "post_attention_layernorm.weight", "h"),
        Gated(
            OURS + "mlp.linear_fc1.weight",
            gate=THEIRS + "mlp.gate_proj.weight",
            up=THEIRS + "mlp.up_proj.weight",
        ),
        Gated(
            OURS + "mlp.linear_fc1.bias",
            gate=THEIRS + "mlp.gate_proj.bias",
            up=THEIRS + "mlp.up_proj.bias",
            columns="",
            when=biased(UP_BIAS),
        ),
        Zeros(
            (THEIRS + "mlp.gate_proj.bias", THEIRS + "mlp.up_proj.bias"),
            ("f", "f"),
            when=zero(UP_BIAS, beside=DOWN_BIAS),
        ),
        Same(OURS + "mlp.linear_fc2.weight", THEIRS + "mlp.down_proj.weight", "h f"),
        Same(OURS + "mlp.linear_fc2.bias", THEIRS + "mlp.down_proj.bias", "h", when=biased(DOWN_BIAS)),
        Zeros((THEIRS + "mlp.down_proj.bias",), ("h",), when=zero(DOWN_BIAS, beside=UP_BIAS)),
        Same("decoder.final_layernorm.weight", "model.norm.weight", "h"),
        Vocab("output_layer.weight", "lm_head.weight", when=UNTIED),
    ),
    config=(
        Field("num_layers", "num_hidden_layers"),
        Field("hidden_size", "hidden_size"),
        Field("ffn_hidden_size", "intermediate_size", read="ffn_size"),
        Field("num_attention_heads", "num_attention_heads"),
        QueryGroups(),
        HeadSize(),
        Field("max_position_embeddings", "max_position_embeddings", default=2048),
        Field("layernorm_epsilon", "rms_norm_eps", default=1e-6),
        Field("init_method_std", "initializer_range", default=0.02),
        Negated(UNTIED, "tie_word_embeddings", default=False),
        Rope(),
        Constant("hidden_act", "silu"),
        Biases(),
        Written("attention_dropout", 0.0),
        Written("use_cache", True),
    ),
    requires={
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "normalization": "RMSNorm",
        "swiglu": True,
    },
    ignored_hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
    foreign={"quantization_config": "quantised weights cannot be imported"},
)
