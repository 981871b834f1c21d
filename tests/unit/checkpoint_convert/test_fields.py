"""config.json in the spellings that are found in the wild, and the ones that are refused."""

from __future__ import annotations

import pytest
import torch

from checkpoint_convert.architectures import architecture_for_config
from checkpoint_convert.architectures.baichuan import BAICHUAN
from checkpoint_convert.architectures.llama import LLAMA
from checkpoint_convert.fields import RotaryDimension
from checkpoint_convert.hf_files import SpecialIds, config_of, generation_config_of, read_json
from checkpoint_convert.rows import Zeros
from megatron_ext.config import ModelConfig
from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.errors import ConversionError
from megatron_ext.model.rotary_frequencies import Rotary, inverse_frequencies

LLAMA_2 = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "use_cache": False,
    "vocab_size": 32000,
}
BAICHUAN_13B = {
    "architectures": ["BaichuanForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "model_max_length": 4096,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "rms_norm_eps": 1e-06,
    "vocab_size": 64000,
}


def test_a_published_llama_config_is_understood():
    assert architecture_for_config(LLAMA_2) is LLAMA
    model = ModelConfig(**LLAMA.model_fields(LLAMA_2))
    assert (model.head_dim, model.query_groups, model.group_query_attention) == (128, 32, False)
    assert (model.rotary_base, model.layernorm_epsilon, model.normalization) == (10000, 1e-5, "RMSNorm")
    assert model.untie_embeddings_and_output_weights and model.swiglu and not model.add_bias_linear


def test_a_published_baichuan_config_is_understood():
    assert architecture_for_config(BAICHUAN_13B) is BAICHUAN
    model = ModelConfig(**BAICHUAN.model_fields(BAICHUAN_13B))
    assert (model.position_embedding_type, model.max_position_embeddings, model.head_dim) == ("alibi", 4096, 128)
    BAICHUAN.check_model(model)


def test_baichuan_2_is_told_by_its_key():
    assert not BAICHUAN.model_fields(BAICHUAN_13B)["norm_head"]
    assert BAICHUAN.model_fields(BAICHUAN_13B | {"z_loss_weight": 0})["norm_head"]


@pytest.mark.parametrize(
    ("keys", "biases"),
    [
        ({}, (False, False, False, False)),
        ({"attention_bias": True}, (True, True, False, False)),
        ({"mlp_bias": True}, (False, False, True, True)),
        ({"attention_bias": True, "mlp_bias": True}, (True, True, True, True)),
        (
            {"attention_bias": True, "zero_biases": ["q_proj", "k_proj", "v_proj"]},
            (False, True, False, False),
        ),
    ],
)
def test_biases_of_a_published_llama(keys, biases):
    assert ModelConfig(**LLAMA.model_fields(LLAMA_2 | keys)).biased_projections == biases


def test_biases_that_were_zeros_and_are_trained_since_are_not_dropped():
    row = Zeros(("model.layers.{i}.self_attn.o_proj.bias",), ("h",))
    with pytest.raises(ConversionError, match=r"o_proj\.bias is not zero.*remove zero_biases"):
        row.to_megatron([torch.tensor([0.0, 1e-9])], None)


@pytest.mark.parametrize("generation", ["rope_scaling", "rope_parameters"])
def test_a_published_scaling_is_understood(generation):
    llama_3_1 = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    model = ModelConfig(**LLAMA.model_fields(LLAMA_2 | {"rope_theta": 5e5, generation: llama_3_1}))
    assert model.rope_scaling == ModelConfig(use_rope_scaling=True).rope_scaling and model.rotary_base == 500000
    model = ModelConfig(**LLAMA.model_fields(LLAMA_2 | {generation: {"type": "yarn", "factor": 4.0}}))
    assert model.rope_scaling == RopeScaling("yarn", 4.0, original_positions=4096)
    model = ModelConfig(**LLAMA.model_fields(LLAMA_2 | {generation: {"type": "linear", "factor": 2.0}}))
    assert model.rope_scaling == RopeScaling("linear", 2.0)


def test_ntk_at_every_length_is_written_as_the_base_that_it_is():
    values = dict(position_embedding_type="rope", num_layers=1, hidden_size=4096, num_attention_heads=32)
    model = ModelConfig(**values, rope_scaling_type="ntk", rope_scaling_factor=3)
    entries = LLAMA.config_entries(model)
    assert entries["rope_scaling"] is None and entries["rope_parameters"]["rope_type"] == "default"
    assert entries["rope_theta"] == pytest.approx(30527.6, abs=1)  # TeleChat-7B's, by its modelling file
    back = Rotary(LLAMA.model_fields(LLAMA_2 | entries)["rotary_base"])
    ours = Rotary(10000.0, scaling=model.rope_scaling)
    assert torch.equal(*(inverse_frequencies(rotary, 128, torch.device("cpu")) for rotary in (back, ours)))


def test_every_number_of_rotated_channels_survives():
    row = RotaryDimension(heads="n_head", hidden="n_embd")
    for size in range(1, 257):
        for channels in range(1, size + 1):
            share = row.to_megatron({"rotary_dim": channels, "n_head": 1, "n_embd": size})["rotary_percent"]
            assert int(size * share) == channels and share <= 1


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0},
        {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        {"rope_theta": 500000, "rope_parameters": {"rope_theta": 500000.0}, "rope_scaling": {"type": "default"}},
    ],
)
def test_the_rotary_base_is_read_from_either_spelling(spelling):
    assert LLAMA.model_fields(LLAMA_2 | spelling)["rotary_base"] == 500000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "two rotary bases"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no value for original_max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "no value for factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling = .*dynamic"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7}}, "rope_scaling = .*mscale"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "rope_scaling = .*truncate"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "two scalings",
        ),
        ({"attention_bias": True, "zero_biases": ["k_proj"]}, "zero_biases = .*each group whole"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"hidden_size": None}, "no value for hidden_size"),
    ],
)
def test_a_llama_that_cannot_be_expressed_is_refused(change, words):
    with pytest.raises(ConversionError, match=words):
        LLAMA.model_fields(LLAMA_2 | change)


@pytest.mark.parametrize(
    ("change", "words"), [({"hidden_act": "gelu"}, "hidden_act"), ({"max_position_embeddings": 4096}, "rotary")]
)
def test_the_other_models_of_the_same_name_are_refused(change, words):
    with pytest.raises(ConversionError, match=words):
        BAICHUAN.model_fields(BAICHUAN_13B | change)


@pytest.mark.parametrize("config", [{}, {"architectures": ["BaiChuanForCausalLM"], "model_type": "baichuan"}])
def test_an_unknown_class_is_refused_with_the_known_ones(config):
    with pytest.raises(ConversionError, match=r"LlamaForCausalLM, .*BaichuanForCausalLM"):
        architecture_for_config(config)


def test_the_written_config_speaks_to_both_generations():
    model = ModelConfig(**LLAMA.model_fields(LLAMA_2 | {"rope_theta": 5000.0, "num_key_value_heads": 8}))
    config = config_of(LLAMA, model, 32000, "bfloat16", SpecialIds(1, 2, None))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000.0
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert (config["vocab_size"], config["head_dim"], config["num_key_value_heads"]) == (32000, 128, 8)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, None)
    assert config["tie_word_embeddings"] is False
    assert ModelConfig(**LLAMA.model_fields(config)) == model
    assert generation_config_of(SpecialIds(1, 2, None)) == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    assert generation_config_of(SpecialIds()) == {}


def test_a_config_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ConversionError, match="is missing"):
        read_json(tmp_path / "config.json")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConversionError, match=r"config\.json"):
            read_json(tmp_path / "config.json")
