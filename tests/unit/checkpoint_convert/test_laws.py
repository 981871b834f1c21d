"""The six laws of a conversion table, for every architecture: complete, inverse, config, logits, and able to fail."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from checkpoint_convert import rows
from checkpoint_convert.architectures import ARCHITECTURES, architecture_for_config, architecture_for_model
from checkpoint_convert.engine import Conversion, bind, sizes_of
from checkpoint_convert.rows import QKV, BlockedQVK, Gated, Same
from megatron_ext.config import ModelConfig
from megatron_ext.config.knob import knob
from megatron_ext.errors import ConversionError
from tests.unit.checkpoint_convert.references import MemorySource, random_weights, reference_logits
from tests.unit.model.textbook import textbook_logits

VOCAB, PADDED = 101, 128
TOKENS = torch.randint(0, VOCAB, (2, 17), generator=torch.Generator().manual_seed(3))

COMMON = dict(
    num_layers=2,
    hidden_size=24,
    ffn_hidden_size=40,
    num_attention_heads=6,
    max_position_embeddings=64,
    normalization="RMSNorm",
    swiglu=True,
    add_bias_linear=False,
    layernorm_epsilon=1e-5,
    init_method_std=0.05,
)
GELU = dict(normalization="LayerNorm", swiglu=False, openai_gelu=True)
GROUPED = dict(group_query_attention=True, num_query_groups=2, kv_channels=10)  # np != ng, hn * np != h
ROPE = dict(position_embedding_type="rope", rotary_base=5000.0, **GROUPED)
STRETCHED = dict(ROPE, rotary_base=100.0, rope_scaling_factor=4.0, original_max_position_embeddings=16)
SHAPES = {
    "llama": ROPE,
    "internlm": dict(ROPE, add_qkv_bias=True, add_attention_output_bias=True),
    "telechat": dict(ROPE, add_attention_output_bias=True, add_mlp_down_bias=True),
    "qkvup": dict(ROPE, add_qkv_bias=True, add_mlp_up_bias=True),
    "biased": dict(ROPE, add_bias_linear=True),
    "linear": dict(ROPE, rope_scaling_type="linear", rope_scaling_factor=3.0),
    "yarn": dict(STRETCHED, rope_scaling_type="yarn", rope_scaling_beta_fast=8.0),
    "yarn2": dict(STRETCHED, rope_scaling_type="yarn", rope_scaling_attention_factor=1.5),
    "llama3": dict(STRETCHED, rope_scaling_type="llama3", rope_scaling_high_freq_factor=3.0),
    "qwen2": dict(ROPE, add_qkv_bias=True),
    "baichuan": dict(position_embedding_type="alibi", kv_channels=10),  # six heads: not a power of two
    "baichuan2": dict(position_embedding_type="alibi", kv_channels=10, norm_head=True),
    "bloom": dict(
        GELU,
        position_embedding_type="alibi",
        embedding_layernorm=True,
        add_bias_linear=True,
        ffn_hidden_size=None,
    ),
    "codegen": dict(
        GELU,
        hidden_size=48,
        num_attention_heads=8,
        position_embedding_type="rope",
        rotary_percent=4 / 6,
        rotary_interleaved=True,
        parallel_residual=True,
        add_mlp_up_bias=True,
        add_mlp_down_bias=True,
        add_output_layer_bias=True,
    ),
}
CLASSES = {"baichuan2": "baichuan"} | {
    name: "llama" for name in ("internlm", "telechat", "qkvup", "biased", "linear", "yarn", "yarn2", "llama3")
}
"""Model -> the architecture that holds it, where it has another name."""


def model_of(name: str, tied: bool, **changes) -> ModelConfig:
    return ModelConfig(**{**COMMON, **SHAPES[name], "untie_embeddings_and_output_weights": not tied, **changes})


def architecture_of(name: str):
    return ARCHITECTURES[CLASSES.get(name, name)]


CASES = pytest.mark.parametrize(
    ("name", "tied"), [(n, t) for n in SHAPES for t in (False, True) if not (n == "baichuan2" and t)]
)


def conversion_of(name: str, model: ModelConfig) -> Conversion:
    return Conversion(architecture_of(name), model, sizes_of(model, VOCAB, PADDED))


def hf_model(architecture, model, tensors: dict[str, torch.Tensor] | None):
    """The Hugging Face model of this configuration, fp32, with `tensors` loaded strictly (tied head excepted)."""
    import transformers

    from checkpoint_convert.modeling.configuration_baichuan import BaichuanConfig
    from checkpoint_convert.modeling.modeling_baichuan import BaichuanForCausalLM

    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "baichuan": (BaichuanConfig, BaichuanForCausalLM),
        "bloom": (transformers.BloomConfig, transformers.BloomForCausalLM),
        "codegen": (transformers.CodeGenConfig, transformers.CodeGenForCausalLM),
    }
    config_class, model_class = classes[architecture.name]
    entries = {k: v for k, v in architecture.config_entries(model).items() if k != "auto_map"}
    config = config_class(**entries, vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    built = model_class(config).float().eval()
    if tensors is not None:
        missing, unexpected = built.load_state_dict(tensors, strict=False)
        assert not unexpected
        tied = [] if model.untie_embeddings_and_output_weights else ["lm_head.weight"]
        assert list(missing) == tied
    return built


def hf_logits(architecture, model, tensors) -> torch.Tensor:
    built = hf_model(architecture, model, tensors)
    built.tie_weights()
    with torch.no_grad():
        return built(input_ids=TOKENS).logits


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@CASES
def test_the_table_names_every_tensor_of_both_models(name, tied):
    model = model_of(name, tied)
    architecture = architecture_of(name)
    conversion = conversion_of(name, model)
    assert {row.megatron for row in conversion.rows() if row.megatron} == set(random_weights(model, VOCAB, PADDED))
    stored = dict(hf_model(architecture, model, None).state_dict())
    if tied:
        stored.pop("lm_head.weight")
    assert dict(conversion.hf_layout()) == {key: tuple(value.shape) for key, value in stored.items()}


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_identity_bit_for_bit(name, tied, dtype):
    model = model_of(name, tied)
    conversion = conversion_of(name, model)
    weights = random_weights(model, VOCAB, PADDED, dtype=dtype)
    there = dict(conversion.export(MemorySource(weights)))
    back = dict(conversion.restore(MemorySource(there)))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) and back[key].dtype == dtype for key in weights)
    again = dict(conversion.export(MemorySource(back)))
    assert all(torch.equal(again[key], there[key]) for key in there)


def test_padding_rows_are_cut_and_come_back_as_zeros():
    model = model_of("llama", tied=False)
    conversion = conversion_of("llama", model)
    weights = random_weights(model, VOCAB, PADDED)
    weights["output_layer.weight"][VOCAB:] = 7.0
    there = dict(conversion.export(MemorySource(weights)))
    assert there["lm_head.weight"].shape == (VOCAB, model.hidden_size)
    back = dict(conversion.restore(MemorySource(there)))["output_layer.weight"]
    assert torch.equal(back[:VOCAB], weights["output_layer.weight"][:VOCAB])
    assert torch.equal(back[VOCAB:], torch.zeros(PADDED - VOCAB, model.hidden_size))


@CASES
def test_the_configuration_survives_the_round_trip(name, tied):
    model = model_of(name, tied)
    architecture = architecture_of(name)
    entries = architecture.config_entries(model) | {"architectures": [architecture.hf_class]}
    assert architecture_for_config(entries) is architecture
    back = ModelConfig(**architecture.model_fields(entries))
    assert dataclasses.replace(back, hidden_dropout=0.1, attention_dropout=0.1) == model


@CASES
def test_the_converted_weights_compute_the_formulas_logits(name, tied):
    model = model_of(name, tied)
    assert architecture_for_model(model).name == ("llama" if name == "qwen2" else architecture_of(name).name)
    weights = random_weights(model, VOCAB, PADDED)
    got = hf_logits(architecture_of(name), model, dict(conversion_of(name, model).export(MemorySource(weights))))
    assert relative_difference(got, textbook_logits(model, weights, TOKENS)[..., :VOCAB].float()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "baichuan"])
def test_two_formulas_agree(name):
    model = model_of(name, tied=False)
    weights = random_weights(model, VOCAB, PADDED)
    exact = textbook_logits(model, weights, TOKENS)[..., :VOCAB].float()
    assert relative_difference(reference_logits(model, weights, TOKENS, VOCAB), exact) < 1e-5


def test_forty_alibi_heads_have_the_published_slopes():
    from checkpoint_convert.modeling.modeling_baichuan import alibi_slopes

    slopes = alibi_slopes(40)
    assert slopes[:4] == pytest.approx([0.840896, 0.707107, 0.594604, 0.5], abs=1e-6)
    assert slopes[31] == 0.00390625
    assert slopes[32:] == pytest.approx(
        [0.917004, 0.771105, 0.648420, 0.545254, 0.458502, 0.385553, 0.324210, 0.272627], abs=1e-6
    )


class SwappedGate(Gated):
    def to_hf(self, tensor, sizes):
        return tuple(reversed(super().to_hf(tensor, sizes)))


class HeadsForGroups(QKV):
    def to_hf(self, tensor, sizes):
        rows_of = [sizes.np * sizes.hn, sizes.ng * sizes.hn, sizes.ng * sizes.hn]
        return tensor.split(rows_of)  # as if the queries of all heads stood together


class KeysBeforeValues(BlockedQVK):
    def to_hf(self, tensor, sizes):
        rows = tensor.reshape(4, -1, 3, sizes.hn, sizes.h)
        return (rows.transpose(1, 2).reshape(-1, sizes.h),)


class SwappedKeyValue(QKV):
    def to_hf(self, tensor, sizes):
        query, key, value = super().to_hf(tensor, sizes)
        return query, value, key


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("llama", Gated, SwappedGate),
        ("llama", QKV, HeadsForGroups),
        ("llama", QKV, SwappedKeyValue),
        ("internlm", QKV, SwappedKeyValue),
        ("codegen", BlockedQVK, KeysBeforeValues),
    ],
)
def test_a_wrong_row_changes_the_logits(name, right, wrong):
    model = model_of(name, tied=False)
    broken = [
        wrong(**{f.name: getattr(row, f.name) for f in dataclasses.fields(row)}) if type(row) is right else row
        for row in architecture_of(name).weights
    ]
    architecture = dataclasses.replace(architecture_of(name), weights=tuple(broken))
    weights = random_weights(model, VOCAB, PADDED)
    conversion = Conversion(architecture, model, sizes_of(model, VOCAB, PADDED))
    got = hf_logits(architecture, model, dict(conversion.export(MemorySource(weights))))
    assert relative_difference(got, textbook_logits(model, weights, TOKENS)[..., :VOCAB].float()) > 1e-2


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in ("linear", "yarn", "yarn2", "llama3")])
def test_a_dropped_row_is_named_on_both_sides(name):
    model = model_of(name, tied=False)
    full = conversion_of(name, model)
    weights = MemorySource(random_weights(model, VOCAB, PADDED))
    there = MemorySource(dict(full.export(weights)))
    weights_of_class = architecture_of(name).weights
    present = {bound.row for bound in full.rows()}
    for index, row in enumerate(weights_of_class):
        if row not in present:
            continue
        kept = weights_of_class[:index] + weights_of_class[index + 1 :]
        conversion = dataclasses.replace(full, architecture=dataclasses.replace(full.architecture, weights=kept))
        if row.megatron:
            with pytest.raises(ConversionError, match="matched by no row") as caught:
                conversion.check_megatron(weights)
            assert row.megatron.replace("{i}", "0") in str(caught.value)
        if row.hf_names != ("lm_head.weight",):
            with pytest.raises(ConversionError, match="matched by no row"):
                conversion.check_hf(there)


def test_a_row_written_twice_and_a_missing_tensor_are_named():
    model = model_of("llama", tied=False)
    table = ARCHITECTURES["llama"]
    twice = dataclasses.replace(
        table, weights=(*table.weights, Same("decoder.final_layernorm.weight", "model.norm.weight", "h"))
    )
    weights = random_weights(model, VOCAB, PADDED)
    with pytest.raises(ConversionError, match=r"1 matched by several rows: decoder\.final_layernorm\.weight"):
        Conversion(twice, model, sizes_of(model, VOCAB, PADDED)).check_megatron(MemorySource(weights))
    del weights["decoder.layers.1.mlp.linear_fc2.weight"]
    with pytest.raises(ConversionError, match=r"1 missing: decoder\.layers\.1\.mlp\.linear_fc2\.weight"):
        conversion_of("llama", model).check_megatron(MemorySource(weights))


def test_a_tensor_of_another_shape_is_named_with_both_shapes():
    model = model_of("llama", tied=False)
    weights = random_weights(model, VOCAB, PADDED)
    weights["decoder.layers.1.mlp.linear_fc2.weight"] = torch.zeros(24, 41)
    with pytest.raises(ConversionError, match=r"linear_fc2.weight has shape \[24, 41\], .* \[24, 40\]"):
        conversion_of("llama", model).check_megatron(MemorySource(weights))


def test_transformer_engine_names_and_extra_states_are_understood():
    model = model_of("llama", tied=False)
    conversion = conversion_of("llama", model)
    weights = random_weights(model, VOCAB, PADDED)
    plain = dict(conversion.export(MemorySource(weights)))
    fused = dict(weights)
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}."
        fused[layer + "self_attention.linear_qkv.layer_norm_weight"] = fused.pop(layer + "input_layernorm.weight")
        fused[layer + "mlp.linear_fc1.layer_norm_weight"] = fused.pop(layer + "pre_mlp_layernorm.weight")
        fused[layer + "mlp.linear_fc1._extra_state"] = torch.zeros(1)
    source = MemorySource(fused)
    conversion.check_megatron(source)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in conversion.export(source))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(normalization="LayerNorm"), "normalization is 'LayerNorm', LlamaForCausalLM needs 'RMSNorm'"),
        (dict(swiglu=False), "swiglu is False, LlamaForCausalLM needs True"),
        (dict(rotary_percent=0.5), "rotary_percent is 0.5, LlamaForCausalLM needs 1.0"),
        (dict(norm_head=True), "norm_head is True, LlamaForCausalLM knows nothing of it"),
        (dict(embedding_multiplier=2.0), "embedding_multiplier is 2.0, LlamaForCausalLM knows nothing of it"),
        (dict(logits_multiplier=0.5), "logits_multiplier is 0.5, LlamaForCausalLM knows nothing of it"),
        (dict(rotary_interleaved=True), "rotary_interleaved is True, LlamaForCausalLM knows nothing of it"),
        (dict(localized_filtering=True), "localized_filtering is True, LlamaForCausalLM knows nothing of it"),
        (dict(add_output_layer_bias=True), "add_output_layer_bias is True, LlamaForCausalLM knows nothing of it"),
        (dict(embedding_layernorm=True), "embedding_layernorm is True, LlamaForCausalLM knows nothing of it"),
        (dict(parallel_residual=True), "parallel_residual is True, LlamaForCausalLM knows nothing of it"),
        (dict(openai_gelu=True), "openai_gelu is True, LlamaForCausalLM knows nothing of it"),
    ],
)
def test_what_the_target_cannot_express_is_refused_with_both_values(changes, words):
    with pytest.raises(ConversionError) as caught:
        architecture_for_model(model_of("llama", tied=False, **changes))
    assert words in str(caught.value)


def test_positions_choose_the_architecture_and_a_wrong_choice_is_refused():
    assert architecture_for_model(model_of("llama", tied=True)).name == "llama"
    assert architecture_for_model(model_of("baichuan", tied=True)).name == "baichuan"
    with pytest.raises(ConversionError, match="position_embedding_type is 'alibi', LlamaForCausalLM needs 'rope'"):
        architecture_for_model(model_of("baichuan", tied=True), "llama")
    with pytest.raises(ConversionError, match="'learned_absolute': no architecture"):
        architecture_for_model(model_of("llama", tied=True, position_embedding_type="learned_absolute"))
    with pytest.raises(ConversionError, match="num_query_groups is 2, BaichuanForCausalLM needs"):
        architecture_for_model(model_of("baichuan", tied=True, group_query_attention=True, num_query_groups=2))


def test_a_model_knob_that_the_table_does_not_know_is_refused_unless_it_is_off():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wider(ModelConfig):
        logit_multiplier: float = knob(1.0, "a knob of a later day")

    values = {f.name: getattr(model_of("llama", True), f.name) for f in dataclasses.fields(ModelConfig)}
    ARCHITECTURES["llama"].check_model(Wider(**values))
    with pytest.raises(ConversionError, match=r"logit_multiplier is 2\.0, LlamaForCausalLM knows nothing of it"):
        ARCHITECTURES["llama"].check_model(Wider(**values, logit_multiplier=2.0))


@pytest.mark.parametrize("name", SHAPES)
def test_layers_come_one_after_the_other(name):
    model = model_of(name, tied=False)
    bound = bind(architecture_of(name).weights, model)
    layers = [row.hf[0].split(".")[2] for row in bound if row.hf[0].count(".") > 3]
    assert set(layers) == {"0", "1"}
    assert layers == sorted(layers)


def test_shape_letters_multiply():
    sizes = rows.Sizes(layers=2, h=24, f=40, np=6, ng=2, hn=10, v=101, vp=128)
    assert sizes.shape("2*f h") == (80, 24)
    assert sizes.shape("h np*hn") == (24, 60)
