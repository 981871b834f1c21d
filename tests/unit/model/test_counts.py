"""Closed forms against a parameter-by-parameter enumeration of megatron-core's shapes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.config import ModelConfig, RunConfig
from megatron_ext.errors import ConfigError
from megatron_ext.model.counts import padded_vocab_size, parameter_counts


def test_padding_is_the_smallest_multiple():
    run = RunConfig().with_values(make_vocab_size_divisible_by=128)
    assert [padded_vocab_size(run, v) for v in (1, 128, 129, 32000, 49954)] == [128, 128, 256, 32000, 50048]
    assert padded_vocab_size(run.with_values(tensor_model_parallel_size=4), 32000) == 32256


@given(st.integers(1, 300_000), st.integers(1, 300), st.integers(1, 16))
def test_padding_law(vocabulary, multiple, tp):
    run = RunConfig().with_values(make_vocab_size_divisible_by=multiple, tensor_model_parallel_size=tp)
    rows = padded_vocab_size(run, vocabulary)
    assert rows % (multiple * tp) == 0 and vocabulary <= rows < vocabulary + multiple * tp


def test_a_fixed_number_of_rows_is_taken_or_refused():
    run = RunConfig().with_values(padded_vocab_size=1000, tensor_model_parallel_size=2)
    assert padded_vocab_size(run, 999) == 1000
    with pytest.raises(ConfigError, match="1000 is smaller than the vocabulary"):
        padded_vocab_size(run, 1001)
    with pytest.raises(ConfigError, match="not a multiple of --tensor-model-parallel-size 3"):
        padded_vocab_size(run.with_values(tensor_model_parallel_size=3), 999)


def shapes(model, rows):
    """Shapes of all parameters by megatron-core's local-spec names, written out without the closed form."""
    h, f = model.hidden_size, model.ffn_size
    q, kv = model.heads * model.head_dim, 2 * model.query_groups * model.head_dim
    norm = {"weight": (h,)} | ({"bias": (h,)} if model.normalization == "LayerNorm" else {})
    result = {"embedding.word_embeddings.weight": (rows, h)}
    if model.position_embedding_type == "learned_absolute":
        result["embedding.position_embeddings.weight"] = (model.max_position_embeddings, h)
    if model.embedding_layernorm:
        result |= {f"embedding.word_embeddings_layernorm.{name}": shape for name, shape in norm.items()}
    if model.untie_embeddings_and_output_weights:
        result["output_layer.weight"] = (rows, h)
    if model.add_output_layer_bias:
        result["output_layer.bias"] = (rows,)
    fc1 = 2 * f if model.swiglu else f
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}"
        for part in ("input_layernorm",) if model.parallel_residual else ("input_layernorm", "pre_mlp_layernorm"):
            result |= {f"{layer}.{part}.{name}": shape for name, shape in norm.items()}
        for part, out, inside, bias in (
            ("self_attention.linear_qkv", q + kv, h, model.add_bias_linear or model.add_qkv_bias),
            ("self_attention.linear_proj", h, q, model.add_bias_linear or model.add_attention_output_bias),
            ("mlp.linear_fc1", fc1, h, model.add_bias_linear or model.add_mlp_up_bias),
            ("mlp.linear_fc2", h, f, model.add_bias_linear or model.add_mlp_down_bias),
        ):
            result[f"{layer}.{part}.weight"] = (out, inside)
            if bias:
                result[f"{layer}.{part}.bias"] = (out,)
        if model.localized_filtering:
            lfa = f"{layer}.self_attention.localized_filter"
            result |= {f"{lfa}.conv1.weight": (h, h), f"{lfa}.conv1.bias": (h // 2,)}
            result |= {f"{lfa}.conv2.weight": (h, h), f"{lfa}.conv2.bias": (h,)}
            result |= {f"{lfa}.norm.{name}": shape for name, shape in norm.items()}
    return result | {f"decoder.final_layernorm.{name}": shape for name, shape in norm.items()}


def count(shape):
    return shape[0] * (shape[1] if len(shape) == 2 else 1)


@given(
    st.builds(
        ModelConfig,
        num_layers=st.integers(1, 3),
        hidden_size=st.sampled_from([48, 60]),
        num_attention_heads=st.sampled_from([4, 6]),
        num_query_groups=st.sampled_from([None, 1, 2]),
        kv_channels=st.sampled_from([None, 7]),
        ffn_hidden_size=st.sampled_from([None, 50]),
        max_position_embeddings=st.just(33),
        position_embedding_type=st.sampled_from(["rope", "learned_absolute", "alibi"]),
        normalization=st.sampled_from(["LayerNorm", "RMSNorm"]),
        swiglu=st.booleans(),
        untie_embeddings_and_output_weights=st.booleans(),
        add_bias_linear=st.booleans(),
        add_qkv_bias=st.booleans(),
        add_attention_output_bias=st.booleans(),
        add_mlp_up_bias=st.booleans(),
        add_mlp_down_bias=st.booleans(),
        embedding_layernorm=st.booleans(),
        parallel_residual=st.booleans(),
        localized_filtering=st.booleans(),
        add_output_layer_bias=st.booleans(),
    ),
    st.integers(1, 99),
)
def test_counts_equal_the_sum_over_all_parameters(model, rows):
    listed = shapes(model, rows)
    counts = parameter_counts(model, rows)
    assert counts.total == sum(map(count, listed.values()))
    assert counts.layer == sum(count(shape) for name, shape in listed.items() if name.startswith("decoder.layers.0."))


def test_learned_positions_take_the_length_that_is_given():
    model = ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    assert parameter_counts(model, 10, 16).position_embedding == 128
