"""A decoder written down from the papers, in fp64 and plain torch, to hold megatron-core's against."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.config import ModelConfig
from megatron_ext.model.alibi import alibi_slopes


def textbook_logits(model: ModelConfig, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits fp64 `[b, s, rows]` of tokens `[b, s]`; weights are full tensors by canonical name."""
    read = {name: weight.double() for name, weight in weights.items()}
    hidden = read["embedding.word_embeddings.weight"][tokens]
    if model.position_embedding_type == "learned_absolute":
        hidden = hidden + read["embedding.position_embeddings.weight"][: tokens.shape[1]]
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}"
        hidden = hidden + attend(
            model, read, f"{layer}.self_attention", norm(model, read, f"{layer}.input_layernorm", hidden)
        )
        hidden = hidden + feed_forward(
            model, read, f"{layer}.mlp", norm(model, read, f"{layer}.pre_mlp_layernorm", hidden)
        )
    hidden = norm(model, read, "decoder.final_layernorm", hidden)
    output = "output_layer" if model.untie_embeddings_and_output_weights else "embedding.word_embeddings"
    return hidden @ read[f"{output}.weight"].T


def norm(model: ModelConfig, read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    if model.normalization == "RMSNorm":
        return x / (x.pow(2).mean(-1, keepdim=True) + model.layernorm_epsilon).sqrt() * read[f"{name}.weight"]
    return functional.layer_norm(x, x.shape[-1:], read[f"{name}.weight"], read[f"{name}.bias"], model.layernorm_epsilon)


def linear(read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    bias = read.get(f"{name}.bias")
    return x @ read[f"{name}.weight"].T + (0 if bias is None else bias)


def feed_forward(model: ModelConfig, read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = linear(read, f"{name}.linear_fc1", x)
    if model.swiglu:
        gate, up = x.chunk(2, -1)
        x = gate / (1 + (-gate).exp()) * up
    else:
        x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return linear(read, f"{name}.linear_fc2", x)


def attend(model: ModelConfig, read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Query rows stand beside their group's key and value rows: `[ng, np/ng + 2, hn]`."""
    b, s, _ = x.shape
    groups, hn = model.query_groups, model.head_dim
    mixed = linear(read, f"{name}.linear_qkv", x).view(b, s, groups, -1, hn)
    query, key, value = mixed[..., :-2, :].reshape(b, s, -1, hn), mixed[..., -2, :], mixed[..., -1, :]
    if model.position_embedding_type == "rope":
        query, key = (
            turned(part.transpose(0, 1), model.rotary_base, model.rotary_percent).transpose(0, 1)
            for part in (query, key)
        )
    repeat = model.heads // groups
    key, value = key.repeat_interleave(repeat, 2), value.repeat_interleave(repeat, 2)
    scores = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(hn)
    if model.position_embedding_type == "alibi":
        scores = scores + alibi_slopes(model.heads).double()[:, None, None] * torch.arange(s)
    scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))
    out = torch.einsum("bnij,bjnd->bind", scores.softmax(-1), value).reshape(b, s, -1)
    return linear(read, f"{name}.linear_proj", out)


def turned(x: Tensor, base: float, fraction: float) -> Tensor:
    """In fp64: pair d becomes one complex number, multiplied by exp(i * position * base^(-2d/D))."""
    dimensions = int(x.shape[-1] * fraction)
    half = dimensions // 2
    exact = x.double()
    pairs = torch.complex(exact[..., :half], exact[..., half:dimensions])
    position = torch.arange(x.shape[0], dtype=torch.float64)[:, None]
    angle = position * base ** (-2 * torch.arange(half, dtype=torch.float64) / dimensions)
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)[:, None, None, :]
    return torch.cat([pairs.real, pairs.imag, exact[..., dimensions:]], -1)
