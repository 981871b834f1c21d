"""Rules that several architectures share: what their classes derive instead of reading it from config.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def one_key_per_query(hf_class: str) -> Callable[[Any], str]:
    """A fused projection that holds as many keys as queries."""

    def rule(model: Any) -> str:
        if model.query_groups == model.num_attention_heads:
            return ""
        return (
            f"num_query_groups is {model.query_groups}, {hf_class} needs num_attention_heads "
            f"= {model.num_attention_heads}"
        )

    return rule


def heads_fill_the_hidden_size(hf_class: str) -> Callable[[Any], str]:
    """Heads of size h / np."""

    def rule(model: Any) -> str:
        if model.head_dim * model.num_attention_heads == model.hidden_size:
            return ""
        return f"kv_channels is {model.head_dim}, {hf_class} needs hidden_size / num_attention_heads"

    return rule
