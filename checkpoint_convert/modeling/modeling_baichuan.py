"""BaichuanForCausalLM with ALiBi, RMSNorm and SwiGLU, for transformers 4.57 and 5.

Nothing here is a buffer: slopes and masks are computed in each forward pass, so that loading (which builds a model
without running its constructor's arithmetic) cannot lose them. Shapes: `b` batch, `q` new positions, `k` all positions,
`h` hidden, `np` heads, `hn` head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_baichuan import BaichuanConfig

IGNORED_LABEL = -100


def alibi_slopes(heads: int) -> list[float]:
    """Slope of each head; for a count that is no power of two, every other slope of the doubled series is appended.

    Source: Press et al., arXiv:2108.12409, section 3, and its published code for other counts.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    return slopes + [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]


def alibi_bias(heads: int, new: int, total: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """What is added to the scaled scores: slope * (key - query), the lowest float where hidden; fp32 `[b|1, np, q, k]`.

    The last `new` of `total` positions ask. A key is hidden when it lies after the query or `attention_mask` `[b, k]`
    is 0 there; only differences of positions count, so padding on the left needs no shift.
    """
    keys = torch.arange(total, device=device)
    distance = keys[None, :] - keys[total - new :, None]
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=device)
    bias = (slopes[:, None, None] * distance.float())[None]
    hidden = (distance > 0)[None, None]
    if attention_mask is not None:
        hidden = hidden | (attention_mask[:, None, None, :total] == 0)
    return bias.masked_fill(hidden, torch.finfo(torch.float32).min)


class BaichuanRMSNorm(nn.Module):
    """Division by the root mean square, in fp32, then a learned scale. Source: arXiv:1910.07467."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., h]` -> `[..., h]`, in the input's dtype."""
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class BaichuanMLP(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: arXiv:2002.05202."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        if config.hidden_act != "silu":
            raise ValueError(f"hidden_act is {config.hidden_act!r}; this model has silu")
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """`[b, q, h]` -> `[b, q, h]`."""
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class BaichuanAttention(nn.Module):
    """Causal attention with a bias; W_pack's rows are all queries, all keys, all values."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        inner = self.heads * self.head_dim
        self.W_pack = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor, bias: Tensor, cache: Cache | None) -> Tensor:
        """`[b, q, h]` -> `[b, q, h]`; scores and softmax in fp32, because the bias needs it."""
        batch, new, _ = hidden.shape
        packed = self.W_pack(hidden).view(batch, new, 3, self.heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(self.head_dim)
        weights = functional.softmax(scores + bias, dim=-1).to(value.dtype)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, new, self.heads * self.head_dim)
        return self.o_proj(mixed)


class BaichuanLayer(GradientCheckpointingLayer):
    """One block: norm, attention, residual; norm, MLP, residual."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, bias: Tensor, past_key_values: Cache | None = None) -> Tensor:
        """`[b, q, h]` -> `[b, q, h]`."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), bias, past_key_values)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class BaichuanPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of both classes below."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanLayer"]  # noqa: RUF012  (the base class declares it so)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012


class BaichuanModel(BaichuanPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BaichuanLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Token ids `[b, q]` (or embeddings `[b, q, h]`) -> hidden states `[b, q, h]` and the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        new = hidden.shape[1]
        heads = self.config.num_attention_heads
        bias = alibi_bias(heads, new, past + new, attention_mask, hidden.device)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, bias, past_key_values=past_key_values)
            states.append(hidden)
        hidden = self.norm(hidden)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states[:-1], hidden) if keep else None,
        )


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):
    """The decoder with its output layer."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  (read by 4.57 as a list of keys)

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The output layer."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the output layer."""
        self.lm_head = new_embeddings

    def forward(  # noqa: PLR0913  (the names that transformers passes)
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Token ids `[b, q]` -> logits `[b, q, v]`, and the loss of the next token where `labels` are given.

        Args:
            input_ids: token ids.
            attention_mask: `[b, k]` over the cached and the new positions; 0 hides a position (padding).
            past_key_values: the cache to extend.
            inputs_embeds: instead of token ids.
            labels: token ids `[b, q]`, not shifted; -100 is left out of the loss.
            use_cache: return a cache.
            output_hidden_states: return the states between layers.
            logits_to_keep: only the last so many positions get logits (0: all), or the positions of a tensor.
            kwargs: what transformers passes to every model; `num_items_in_batch` divides the summed loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = outputs.last_hidden_state[:, kept, :]
        if self.config.norm_head:
            weight: torch.Tensor = self.lm_head.weight  # type: ignore[assignment]
            logits = functional.linear(hidden, unit_rows(weight))
        else:
            logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels, kwargs.get("num_items_in_batch"))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def unit_rows(weight: Tensor) -> Tensor:
    """NormHead: each row of `[v, h]` divided by its length, in fp32. Source: arXiv:2309.10305, appendix B."""
    return functional.normalize(weight.float(), dim=-1).to(weight.dtype)


def next_token_loss(logits: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Cross entropy in fp32 of logits `[b, q, v]` against labels `[b, q]` one later; mean, or sum / `num_items`."""
    targets = labels[:, 1:].reshape(-1).to(logits.device)
    scores = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    if num_items is None:
        return functional.cross_entropy(scores, targets, ignore_index=IGNORED_LABEL)
    return functional.cross_entropy(scores, targets, ignore_index=IGNORED_LABEL, reduction="sum") / num_items
