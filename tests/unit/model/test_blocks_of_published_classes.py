"""The blocks together are the published classes: transformers' logits from the same weights, in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CodeGenConfig,
    CodeGenForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from megatron_ext.model.gpt import build_model
from megatron_ext.parallel.world import World
from tests.unit.tiny import MEGATRON_DEFAULT, tiny_run

ROWS, H, F, HEADS, LAYERS = 128, 32, 48, 4, 2
SIZES = {"vocab_size": ROWS, "hidden_size": H, "num_attention_heads": HEADS, "pad_token_id": 0}
WIDER = {**SIZES, "intermediate_size": F, "num_hidden_layers": LAYERS, "max_position_embeddings": 64}
NORM_LINEAR = ("weight", "bias")


def by_group(query: Tensor, key: Tensor, value: Tensor, groups: int) -> Tensor:
    """Rows of Megatron's fused projection: each group's query heads, then its key head, then its value head."""
    parts = [part.view(groups, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(parts, 1).flatten(0, 1)


def renamed(theirs: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Every tensor whose name holds one of the keys of `names`, under our name."""
    found = {}
    for name, value in theirs.items():
        for old, new in names.items():
            if f".{old}." in f".{name}":
                number = next((part for part in name.split(".") if part.isdigit()), "")
                found[f"{new.format(i=number)}.{name.rpartition('.')[2]}"] = value
    return found


LAYER = "decoder.layers.{i}."
OUTSIDE = {"lm_head": "output_layer"}
LLAMA_NAMES = {
    "embed_tokens": "embedding.word_embeddings", "input_layernorm": LAYER + "input_layernorm",
    "o_proj": LAYER + "self_attention.linear_proj", "post_attention_layernorm": LAYER + "pre_mlp_layernorm",
    "down_proj": LAYER + "mlp.linear_fc2", "model.norm": "decoder.final_layernorm", **OUTSIDE,
}  # fmt: skip


def bloom() -> tuple[PreTrainedModel, dict, dict]:
    model = BloomForCausalLM(
        BloomConfig(vocab_size=ROWS, hidden_size=H, n_layer=LAYERS, n_head=HEADS, hidden_dropout=0, attention_dropout=0)
    )
    names = {
        "word_embeddings": "embedding.word_embeddings",
        "word_embeddings_layernorm": "embedding.word_embeddings_layernorm",
        "input_layernorm": LAYER + "input_layernorm",
        "query_key_value": LAYER + "self_attention.linear_qkv",
        "self_attention.dense": LAYER + "self_attention.linear_proj",
        "post_attention_layernorm": LAYER + "pre_mlp_layernorm",
        "dense_h_to_4h": LAYER + "mlp.linear_fc1",
        "dense_4h_to_h": LAYER + "mlp.linear_fc2",
        "ln_f": "decoder.final_layernorm",
    }
    values = {"position_embedding_type": "alibi", "embedding_layernorm": True, "openai_gelu": True}
    return model, values, {"names": names}


def codegen() -> tuple[PreTrainedModel, dict, dict]:
    config = CodeGenConfig(
        vocab_size=ROWS, n_embd=H, n_layer=LAYERS, n_head=HEADS, n_positions=64, n_ctx=64, rotary_dim=4, n_inner=F,
        tie_word_embeddings=False,
    )  # fmt: skip
    names = {
        "wte": "embedding.word_embeddings", "ln_1": LAYER + "input_layernorm",
        "out_proj": LAYER + "self_attention.linear_proj", "fc_in": LAYER + "mlp.linear_fc1",
        "fc_out": LAYER + "mlp.linear_fc2", "ln_f": "decoder.final_layernorm", **OUTSIDE,
    }  # fmt: skip
    values = {
        "add_bias_linear": False, "add_mlp_up_bias": True, "add_mlp_down_bias": True, "parallel_residual": True,
        "openai_gelu": True, "untie_embeddings_and_output_weights": True, "position_embedding_type": "rope",
        "rotary_percent": 0.5, "rotary_interleaved": True, "ffn_hidden_size": F, "add_output_layer_bias": True,
    }  # fmt: skip

    def qkv(theirs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        blocks = theirs[f"transformer.h.{i}.attn.qkv_proj.weight"].view(4, 3, -1, H)  # 4 blocks of query, value, key
        query, value, key = (blocks[:, part].flatten(0, 1) for part in range(3))
        return {"weight": by_group(query, key, value, HEADS)}

    return CodeGenForCausalLM(config), values, {"names": names, "qkv": qkv}


def qkv_of_llama(groups: int, endings: tuple[str, ...]):
    def qkv(theirs: dict[str, Tensor], i: int) -> dict[str, Tensor]:
        parts = f"model.layers.{i}.self_attn."
        return {
            ending: by_group(*(theirs[f"{parts}{part}_proj.{ending}"] for part in "qkv"), groups) for ending in endings
        }

    return qkv


LLAMA = {
    "normalization": "RMSNorm", "swiglu": True, "ffn_hidden_size": F, "untie_embeddings_and_output_weights": True,
    "add_bias_linear": False, "position_embedding_type": "rope",
}  # fmt: skip


def glm() -> tuple[PreTrainedModel, dict, dict]:
    config = GlmConfig(
        **WIDER, num_key_value_heads=2, head_dim=8, attention_bias=True, rms_norm_eps=1e-5, eos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    values = {
        **LLAMA, "num_query_groups": 2, "add_qkv_bias": True, "rotary_percent": 0.5, "rotary_interleaved": True,
    }  # fmt: skip
    names = {**LLAMA_NAMES, "gate_up_proj": LAYER + "mlp.linear_fc1"}
    return GlmForCausalLM(config), values, {"names": names, "qkv": qkv_of_llama(2, NORM_LINEAR)}


def llama(kind: str) -> tuple[PreTrainedModel, dict, dict]:
    """Biases of the attention alone, RoPE stretched."""
    words = {
        "linear": ({"factor": 3.0}, {}),
        "yarn": ({"factor": 4.0, "original_max_position_embeddings": 16}, {"original_max_position_embeddings": 16}),
        "llama3": (
            {
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            {"original_max_position_embeddings": 16},
        ),
    }
    rope, ours = words[kind]
    config = LlamaConfig(
        **WIDER,
        attention_bias=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": kind, "rope_theta": 100.0, **rope},
    )
    values = {
        **LLAMA, "add_qkv_bias": True, "add_attention_output_bias": True, "rotary_base": 100.0, **ours,
        "rope_scaling_type": kind, "rope_scaling_factor": rope["factor"],
    }  # fmt: skip
    return LlamaForCausalLM(config), values, {"names": LLAMA_NAMES, "qkv": qkv_of_llama(HEADS, NORM_LINEAR)}


CASES = {
    "bloom": bloom,
    "codegen": codegen,
    "glm": glm,
    **{f"llama, {kind}": lambda kind=kind: llama(kind) for kind in ("linear", "yarn", "llama3")},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_published_class(name: str, world: World):
    theirs, values, mapping = CASES[name]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() == 2 else parameter + noise)
    read = dict(theirs.eval().state_dict())
    weights = renamed(read, mapping["names"])
    for i in range(LAYERS):
        if "qkv" in mapping:
            fused = mapping["qkv"](read, i)
            weights |= {f"decoder.layers.{i}.self_attention.linear_qkv.{end}": value for end, value in fused.items()}
        gate = read.get(f"model.layers.{i}.mlp.gate_proj.weight")
        if gate is not None:
            up = read[f"model.layers.{i}.mlp.up_proj.weight"]
            weights[f"decoder.layers.{i}.mlp.linear_fc1.weight"] = torch.cat([gate, up])
    run = tiny_run("megatron_default", **{**MEGATRON_DEFAULT, **values, "padded_vocab_size": ROWS})
    [ours] = build_model(run, ROWS, "cpu")
    for label, parameter in ours.named_parameters():
        parameter.data.copy_(weights[label])
    tokens = torch.randint(2, ROWS, (2, 40), generator=generator)
    with torch.no_grad():
        expected = theirs(tokens).logits
        found = ours.eval()(tokens, torch.arange(40).expand(2, 40), None)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
