"""LlamaForCausalLM: rotary positions, RMSNorm, SwiGLU, grouped queries, tied or untied embeddings, no biases.

Megatron's rotary table (half-rotation) is the class's own, so no row permutes heads.
"""

from __future__ import annotations

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.fields import Constant, Field, HeadSize, Negated, QueryGroups, Rope, Written
from checkpoint_convert.rows import QKV, Gated, Same, Vocab

UNTIED = "untie_embeddings_and_output_weights"
OURS = "decoder.layers.{i}."
THEIRS = "model.layers.{i}."

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
        Same(OURS + "self_attention.linear_proj.weight", THEIRS + "self_attn.o_proj.weight", "h np*hn"),
        Same(OURS + "pre_mlp_layernorm.weight", THEIRS + "post_attention_layernorm.weight", "h"),
        Gated(
            OURS + "mlp.linear_fc1.weight",
            gate=THEIRS + "mlp.gate_proj.weight",
            up=THEIRS + "mlp.up_proj.weight",
        ),
        Same(OURS + "mlp.linear_fc2.weight", THEIRS + "mlp.down_proj.weight", "h f"),
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
        Constant("attention_bias", False),
        Constant("mlp_bias", False),
        Written("attention_dropout", 0.0),
        Written("use_cache", True),
    ),
    requires={
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "normalization": "RMSNorm",
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
    },
    ignored_hf=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
    foreign={"quantization_config": "quantised weights cannot be imported"},
)
