"""Small models in plain fp32 torch that read training-side names: what the converted weights must compute.

Written from the formulas alone (no megatron-core, no transformers), one head at a time, so that a wrong layout on the
way to Hugging Face shows as other logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.unit.model.test_counts import shapes


class MemorySource:
    """Tensors in a dictionary with the interface of a full checkpoint."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def read(self, name: str) -> Tensor:
        return self.tensors[name]


def random_weights(model, vocab_size: int, padded: int, seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    """Weights under the names and in the shapes of megatron-core's local layer spec; the padded rows are zeros."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes(model, padded).items():
        is_norm = "norm" in name and name.endswith(".weight")
        weights[name] = (torch.randn(shape, generator=draw) * 0.3 + (1.0 if is_norm else 0.0)).to(dtype)
        if shape[0] == padded:
            weights[name][vocab_size:] = 0
    return weights


def reference_logits(model, weights: dict[str, Tensor], tokens: Tensor, vocab_size: int) -> Tensor:
    """fp32 logits `[b, s, v]` of a RMSNorm + SwiGLU decoder with rotary or ALiBi positions, token ids `[b, s]`."""
    w = {name: tensor.float() for name, tensor in weights.items()}
    hidden = w["embedding.word_embeddings.weight"][tokens]
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}."
        normed = _norm(hidden, w[layer + "input_layernorm.weight"], model.layernorm_epsilon)
        hidden = hidden + _attention(model, w, layer + "self_attention.", normed)
        normed = _norm(hidden, w[layer + "pre_mlp_layernorm.weight"], model.layernorm_epsilon)
        both = normed @ w[layer + "mlp.linear_fc1.weight"].T
        gate, up = both[..., : model.ffn_size], both[..., model.ffn_size :]
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ w[layer + "mlp.linear_fc2.weight"].T
    hidden = _norm(hidden, w["decoder.final_layernorm.weight"], model.layernorm_epsilon)
    head = "output_layer.weight" if model.untie_embeddings_and_output_weights else "embedding.word_embeddings.weight"
    return hidden @ w[head][:vocab_size].T


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def _attention(model, w: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    np_, ng, hn = model.num_attention_heads, model.query_groups, model.head_dim
    rows = w[prefix + "linear_qkv.weight"]
    per_group = np_ // ng + 2
    outputs = []
    for head in range(np_):
        group, within = divmod(head, np_ // ng)
        start = group * per_group * hn
        q = x @ rows[start + within * hn : start + (within + 1) * hn].T
        k = x @ rows[start + (per_group - 2) * hn : start + (per_group - 1) * hn].T
        v = x @ rows[start + (per_group - 1) * hn : start + per_group * hn].T
        bias = torch.zeros(x.shape[1], x.shape[1])
        if model.position_embedding_type == "rope":
            q, k = _rotate(q, model.rotary_base), _rotate(k, model.rotary_base)
        else:
            place = torch.arange(x.shape[1]).float()
            bias = _slope(head, np_) * (place[None, :] - place[:, None])
        scores = q @ k.transpose(-1, -2) / math.sqrt(hn) + bias
        future = torch.ones_like(bias).triu(1).bool()
        outputs.append(torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v)
    return torch.cat(outputs, -1) @ w[prefix + "linear_proj.weight"].T


def _rotate(x: Tensor, base: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half).double() / half)
    cos, sin = angles.cos().float(), angles.sin().float()
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def _slope(head: int, heads: int) -> float:
    power = 1
    while power * 2 <= heads:
        power *= 2
    if head < power:
        return 2.0 ** (-8.0 * (head + 1) / power)
    return 2.0 ** (-4.0 * (2 * (head - power) + 1) / power)
