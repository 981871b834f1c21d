"""A decoder written down from the papers, in fp64 and plain torch, to hold megatron-core's against."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.config import ModelConfig
from megatron_ext.model.alibi import alibi_slopes
from megatron_ext.model.rotary_frequencies import Rotary


def textbook_logits(model: ModelConfig, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits fp64 `[b, s, rows]` of tokens `[b, s]`; weights are full tensors by canonical name."""
    read = {name: weight.double() for name, weight in weights.items()}
    hidden = read["embedding.word_embeddings.weight"][tokens]
    if model.embedding_layernorm:
        hidden = norm(model, read, "embedding.word_embeddings_layernorm", hidden)
    if model.position_embedding_type == "learned_absolute":
        hidden = hidden + read["embedding.position_embeddings.weight"][: tokens.shape[1]]
    hidden = model.embedding_multiplier * hidden
    for i in range(model.num_layers):
        layer = f"decoder.layers.{i}"
        normal = norm(model, read, f"{layer}.input_layernorm", hidden)
        attended = attend(model, read, f"{layer}.self_attention", normal)
        if not model.parallel_residual:
            normal = norm(model, read, f"{layer}.pre_mlp_layernorm", hidden + attended)
        hidden = hidden + attended + feed_forward(model, read, f"{layer}.mlp", normal)
    hidden = norm(model, read, "decoder.final_layernorm", hidden)
    output = "output_layer" if model.untie_embeddings_and_output_weights else "embedding.word_embeddings"
    rows = read[f"{output}.weight"]
    if model.norm_head:
        rows = rows / rows.square().sum(-1, keepdim=True).sqrt()
    return model.logits_multiplier * hidden @ rows.T + read.get("output_layer.bias", 0)


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
        tanh = torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        x = x * 0.5 * (1 + (tanh if model.openai_gelu else torch.erf(x / math.sqrt(2))))
    return linear(read, f"{name}.linear_fc2", x)


def attend(model: ModelConfig, read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Query rows stand beside their group's key and value rows: `[ng, np/ng + 2, hn]`."""
    b, s, _ = x.shape
    groups, hn = model.query_groups, model.head_dim
    mixed = linear(read, f"{name}.linear_qkv", x).view(b, s, groups, -1, hn)
    value = mixed[..., -1, :]
    if model.localized_filtering:
        mixed = linear(read, f"{name}.linear_qkv", filtered(model, read, f"{name}.localized_filter", x))
        mixed = mixed.view(b, s, groups, -1, hn)
    query, key = mixed[..., :-2, :].reshape(b, s, -1, hn), mixed[..., -2, :]
    if model.position_embedding_type == "rope":
        query, key = (turned(part.transpose(0, 1), rotary_of(model)).transpose(0, 1) for part in (query, key))
    repeat = model.heads // groups
    key, value = key.repeat_interleave(repeat, 2), value.repeat_interleave(repeat, 2)
    scores = torch.einsum("bind,bjnd->bnij", query, key) / math.sqrt(hn)
    if model.position_embedding_type == "alibi":
        scores = scores + alibi_slopes(model.heads).double()[:, None, None] * torch.arange(s)
    scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))
    out = torch.einsum("bnij,bjnd->bind", scores.softmax(-1), value).reshape(b, s, -1)
    return linear(read, f"{name}.linear_proj", out)


def filtered(model: ModelConfig, read: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The published form: two convolutions with weights `[out, in, 2]` over a sequence with a 0 put before it."""
    h = x.shape[-1]
    first = read[f"{name}.conv1.weight"].view(h // 2, 2, h).transpose(1, 2)
    second = read[f"{name}.conv2.weight"].view(h, h // 2, 2)
    out = x.transpose(1, 2)
    for weight, conv in ((first, "conv1"), (second, "conv2")):
        out = functional.conv1d(functional.pad(out, (1, 0)), weight, read[f"{name}.{conv}.bias"])
    return norm(model, read, f"{name}.norm", x + out.transpose(1, 2))


def rotary_of(model: ModelConfig) -> Rotary:
    return Rotary(model.rotary_base, model.rotary_percent, model.rotary_interleaved, model.rope_scaling)


def turned(x: Tensor, rotary: Rotary) -> Tensor:
    """In fp64: pair d becomes one complex number, multiplied by factor * exp(i * position * speed(d))."""
    dimensions = int(x.shape[-1] * rotary.percent)
    half = dimensions // 2
    exact = x.double()
    head, rest = exact[..., :dimensions], exact[..., dimensions:]
    first, second = (head[..., ::2], head[..., 1::2]) if rotary.interleaved else (head[..., :half], head[..., half:])
    position = torch.arange(x.shape[0], dtype=torch.float64)[:, None]
    angle = position * torch.tensor([speed(rotary, d, dimensions) for d in range(half)], dtype=torch.float64)
    scaling = rotary.scaling
    factor = 1.0
    if scaling is not None and scaling.kind == "yarn":
        factor = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1
    pairs = torch.complex(first, second) * torch.polar(torch.full_like(angle, factor), angle)[:, None, None, :]
    if rotary.interleaved:
        return torch.cat([torch.view_as_real(pairs).flatten(-2), rest], -1)
    return torch.cat([pairs.real, pairs.imag, rest], -1)


def speed(rotary: Rotary, d: int, dimensions: int) -> float:
    """Radians a position, of pair d, by the papers' formulas."""
    base, scaling = rotary.base, rotary.scaling
    plain = base ** (-2 * d / dimensions)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "ntk":
        return (base * scaling.factor ** (dimensions / (dimensions - 2))) ** (-2 * d / dimensions)
    turns = scaling.original_positions * plain / (2 * math.pi)
    if scaling.kind == "llama3":
        if turns > scaling.high_freq_factor:
            return plain
        if turns < scaling.low_freq_factor:
            return plain / scaling.factor
        kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return (1 - kept) * plain / scaling.factor + kept * plain
    # yarn: which pairs turn beta times, rounded outwards; in between the share falls with the pair's number
    edges = [
        dimensions / 2 * math.log(scaling.original_positions / (2 * math.pi * beta), base)
        for beta in (scaling.beta_fast, scaling.beta_slow)
    ]
    first, last = max(math.floor(edges[0]), 0), min(math.ceil(edges[1]), dimensions - 1)
    slowed = 0.0 if d <= first else 1.0 if d >= last else (d - first) / (last - first)
    return plain * (1 - slowed + slowed / scaling.factor)
