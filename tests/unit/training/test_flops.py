"""The formula against a hand count, a count of matrix products, and the 6 N rule of thumb."""

from __future__ import annotations

import pytest

from megatron_ext.config import ModelConfig
from megatron_ext.training.flops import model_flops_per_step, tflops_per_rank


def shape(**changes: object) -> ModelConfig:
    values = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 16, "num_attention_heads": 2}
    return ModelConfig(**{**values, **changes})


def matmul_flops(model: ModelConfig, vocab_rows: int, batch: int, seq: int) -> int:
    """Forward and backward, product by product: [m, k] x [k, n] takes 2 m k n forward and 4 m k n backward."""
    tokens, hidden, size = batch * seq, model.hidden_size, model.head_dim
    products = []
    for _ in range(model.num_layers):
        products.append((tokens, hidden, (model.heads + 2 * model.query_groups) * size))
        products.append((tokens, model.heads * size, hidden))
        if model.localized_filtering:  # two taps each
            products += [(tokens, hidden, hidden / 2)] * 2 + [(tokens, hidden / 2, hidden)] * 2
        products += [(tokens, hidden, model.ffn_size)] * (2 if model.swiglu else 1)
        products.append((tokens, model.ffn_size, hidden))
        for _ in range(batch * model.heads):
            products.append((seq, size, seq / 2))  # half of the scores: causal
            products.append((seq, seq / 2, size))
    products.append((tokens, hidden, vocab_rows))
    return round(sum(6 * m * k * n for m, k, n in products))


def test_hand_count():
    # Per layer and token: qkv 8 x 24, out 8 x 8, mlp 8 x 16 twice = 512 weights; logits 8 x 32 = 256.
    # 10 tokens of sequences of 5: 6 * 10 * (2 * 512 + 256) + 6 * 2 * 8 * 10 * 5 = 76800 + 4800.
    assert model_flops_per_step(shape(), vocab_rows=32, num_tokens=10, seq_length=5) == 81600


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize(("channels", "filtered"), [(None, True), (6, False)])
def test_equals_the_sum_over_all_matrix_products(
    swiglu: bool, groups: int | None, channels: int | None, filtered: bool
):
    model = shape(
        localized_filtering=filtered,
        swiglu=swiglu,
        group_query_attention=groups is not None,
        num_query_groups=groups,
        kv_channels=channels,
        num_attention_heads=4,
        num_layers=3,
    )
    expected = matmul_flops(model, vocab_rows=50, batch=3, seq=6)
    assert model_flops_per_step(model, vocab_rows=50, num_tokens=18, seq_length=6) == expected


def test_six_operations_per_weight_and_token_when_the_model_is_large():
    llama_7b = shape(num_layers=32, hidden_size=4096, ffn_hidden_size=11008, num_attention_heads=32, swiglu=True)
    weights = (
        32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096
    )  # without the input embedding, which multiplies nothing
    flops = model_flops_per_step(llama_7b, vocab_rows=32000, num_tokens=2048, seq_length=2048)
    scores = 6 * 32 * 4096 * 2048 * 2048
    assert flops == 6 * weights * 2048 + scores
    assert scores / flops < 0.05


def test_rate_per_rank():
    assert tflops_per_rank(8 * 10**12, seconds=2.0, world_size=4) == 1.0
    assert tflops_per_rank(8 * 10**12, seconds=0.0, world_size=4) == 0.0
