"""Model operations of a training step, by the formula that TFLOP/s figures are usually compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.config import ModelConfig


def model_flops_per_step(model: ModelConfig, vocab_rows: int, num_tokens: int, seq_length: int) -> int:
    """Floating-point operations of forward and backward over `num_tokens` tokens, all ranks together.

    A multiplication with an addition counts as two; the backward pass as twice the forward pass, hence 6 per weight
    and token. With q = heads * head size and k = v = query groups * head size, three terms:

    1. projections: `6 t L (h (q + k + v) + q h)` for attention, `6 t L 2 h^2` for the two convolutions of localized
       filtering, and `6 t L h f m` for the MLP, m = 3 with SwiGLU (gate, up, down), else 2;
    2. attention scores and their product with the values: `6 L q t s`, of which causality leaves half (the full
       square would be `12 L q t s`);
    3. logits: `6 t h v`, v counting the padding rows that are multiplied too.

    Recomputed activations, norms, softmax and the optimizer are not counted, so that the figure measures useful work.

    Args:
        model: the architecture.
        vocab_rows: rows of the output layer, padding included.
        num_tokens: tokens of the step, t.
        seq_length: tokens of one sequence, s.

    Source: arXiv:2104.04473, section 5.1, for grouped queries and a gated MLP; useful work only: arXiv:2204.02311, B.
    """
    hidden, layers = model.hidden_size, model.num_layers
    assert hidden is not None and layers is not None  # a rule of the configuration
    query = model.heads * model.head_dim
    key_and_value = 2 * model.query_groups * model.head_dim
    attention_weights = hidden * (query + key_and_value) + query * hidden
    attention_weights += 2 * hidden * hidden if model.localized_filtering else 0
    mlp_weights = hidden * model.ffn_size * (3 if model.swiglu else 2)
    projections = 6 * num_tokens * layers * (attention_weights + mlp_weights)
    scores = 6 * layers * query * num_tokens * seq_length
    logits = 6 * num_tokens * hidden * vocab_rows
    return projections + scores + logits


def tflops_per_rank(flops: int, seconds: float, world_size: int) -> float:
    """10^12 operations per second and rank, for a step of `flops` operations over all ranks."""
    return flops / (seconds * 1e12 * world_size) if seconds > 0 else 0.0
