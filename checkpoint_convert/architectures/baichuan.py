"""BaichuanForCausalLM as Baichuan-13B and Baichuan2-13B have it: ALiBi, RMSNorm, SwiGLU, one fused W_pack, no biases.

Baichuan 2 adds NormHead: the stored rows of the head keep their length, and the class divides by it.

No class inside transformers holds this combination, so the export ships our own modelling files.
"""

from __future__ import annotations

from pathlib import Path

from checkpoint_convert.architecture import Architecture
from checkpoint_convert.architectures.llama import OURS, THEIRS, UNTIED
from checkpoint_convert.architectures.shared_rules import one_key_per_query
from checkpoint_convert.fields import Constant, Field, HeadSize, Negated, NormHead, QueryGroups, Written
from checkpoint_convert.rows import Gated, PackedQKV, Same, Vocab

MODELING = Path(__file__).resolve().parent.parent / "modeling"


BAICHUAN = Architecture(
    name="baichuan",
    hf_class="BaichuanForCausalLM",
    model_type="baichuan",
    weights=(
        Vocab("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
        Same(OURS + "input_layernorm.weight", THEIRS + "input_layernorm.weight", "h"),
        PackedQKV(OURS + "self_attention.linear_qkv.weight", THEIRS + "self_attn.W_pack.weight"),
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
        Field("max_position_embeddings", "model_max_length", default=4096),
        Field("layernorm_epsilon", "rms_norm_eps", default=1e-6),
        Field("init_method_std", "initializer_range", default=0.02),
        Negated(UNTIED, "tie_word_embeddings", default=False),
        NormHead(),
        Constant("hidden_act", "silu"),
        Written("use_cache", True),
        Written(
            "auto_map",
            {
                "AutoConfig": "configuration_baichuan.BaichuanConfig",
                "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
            },
        ),
    ),
    requires={
        "position_embedding_type": "alibi",
        "normalization": "RMSNorm",
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": False,
    },
    rules=(one_key_per_query("BaichuanForCausalLM"),),
    foreign={
        "quantization_config": "quantised weights cannot be imported",
        "max_position_embeddings": "this is a Baichuan model with rotary positions, not with ALiBi",
    },
    own_files=(MODELING / "configuration_baichuan.py", MODELING / "modeling_baichuan.py"),
)
