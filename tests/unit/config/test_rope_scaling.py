"""The options of stretched RoPE as one value: Llama 3.1's own numbers filled in, Megatron-LM's switch the same."""

import pytest

from megatron_ext.config import ModelConfig
from megatron_ext.config.rope_scaling import RopeScaling


def test_plain_rope_is_not_stretched():
    assert ModelConfig().rope_scaling is None


@pytest.mark.parametrize("values", [{"use_rope_scaling": True}, {"rope_scaling_type": "llama3"}])
def test_llama_3_1_has_its_numbers(values):
    assert ModelConfig(**values).rope_scaling == RopeScaling("llama3", 8.0, 8192, 32.0, 1.0, 1.0, 4.0, None)
    other = ModelConfig(**values, rope_scaling_factor=32, original_max_position_embeddings=4096).rope_scaling
    assert (other.factor, other.original_positions) == (32.0, 4096)


def test_every_option_arrives():
    model = ModelConfig(
        rope_scaling_type="yarn",
        rope_scaling_factor=4,
        original_max_position_embeddings=2048,
        rope_scaling_beta_fast=24,
        rope_scaling_beta_slow=2,
        rope_scaling_low_freq_factor=3,
        rope_scaling_high_freq_factor=5,
        rope_scaling_attention_factor=1.5,
    )
    assert model.rope_scaling == RopeScaling("yarn", 4.0, 2048, 24.0, 2.0, 3.0, 5.0, 1.5)
