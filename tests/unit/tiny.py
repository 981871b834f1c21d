"""The smallest real training there is: a run configuration, an endless view of random tokens, built components."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_ext.config import RunConfig
from megatron_ext.data.views import View
from megatron_ext.tokenizer.null import NullTokenizer

if TYPE_CHECKING:
    from megatron_ext.parallel.world import World
    from megatron_ext.training.components import Components

VOCAB_SIZE = 100
TOKENIZER = NullTokenizer(VOCAB_SIZE - 1)

LLAMA = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48, "swiglu": True,
    "normalization": "RMSNorm", "position_embedding_type": "rope", "untie_embeddings_and_output_weights": True,
    "add_bias_linear": False,
}  # fmt: skip
MEGATRON_DEFAULT = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
ARCHITECTURES = {
    "llama": LLAMA,
    "megatron_default": MEGATRON_DEFAULT,
    "grouped_queries": {**LLAMA, "num_query_groups": 2},
    "one_query_group": {**LLAMA, "num_query_groups": 1, "kv_channels": 12},
    "partial_rotary_tied": {**LLAMA, "rotary_percent": 0.5, "untie_embeddings_and_output_weights": False},
    "alibi": {**MEGATRON_DEFAULT, "num_attention_heads": 6, "hidden_size": 48, "position_embedding_type": "alibi"},
    "qkv_bias": {**LLAMA, "add_qkv_bias": True},
    "attention_bias": {**LLAMA, "add_qkv_bias": True, "add_attention_output_bias": True},
    "output_and_down_bias": {**LLAMA, "add_attention_output_bias": True, "add_mlp_down_bias": True},
    "bloom": {
        **MEGATRON_DEFAULT,
        "position_embedding_type": "alibi",
        "embedding_layernorm": True,
        "openai_gelu": True,
    },
    "moss": {
        **MEGATRON_DEFAULT,
        "add_bias_linear": False,
        "add_mlp_up_bias": True,
        "add_mlp_down_bias": True,
        "parallel_residual": True,
        "openai_gelu": True,
        "untie_embeddings_and_output_weights": True,
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "rotary_interleaved": True,
        "add_output_layer_bias": True,
    },
    "output_bias_tied": {**MEGATRON_DEFAULT, "add_output_layer_bias": True},
    "stretched": {
        **LLAMA,
        "kv_channels": 16,
        "embedding_layernorm": True,
        "rope_scaling_type": "yarn",
        "rope_scaling_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "filtered": {
        **LLAMA,
        "num_query_groups": 2,
        "localized_filtering": True,
        "add_qkv_bias": True,
        "untie_embeddings_and_output_weights": False,
    },
    "norm_head": {**LLAMA, "norm_head": True, "logits_multiplier": 0.2, "embedding_multiplier": 12.0},
    "multiplied_tied": {**MEGATRON_DEFAULT, "logits_multiplier": 0.3, "embedding_multiplier": 3.0},
    "no_positions": {**MEGATRON_DEFAULT, "position_embedding_type": "none", "normalization": "RMSNorm"},
}


def tiny_run(architecture: str = "llama", **values: object) -> RunConfig:
    """A run of one process: 2 layers, 16 tokens, 2 micro-batches of 2 samples, no dropout, constant rate."""
    base = {
        **ARCHITECTURES[architecture], "seq_length": 16, "micro_batch_size": 2, "global_batch_size": 4,
        "train_iters": 20, "lr": 1e-2, "lr_decay_style": "constant", "weight_decay": 0.1, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "eval_iters": 2, "num_threads": 1, "num_workers": 0, "device": "cpu",
        "progress": False,
    }  # fmt: skip
    return RunConfig().with_values(**{**base, **values})


class TokenView(View):
    """`samples` windows of random tokens, in order, over and over; `seen` lists what was read.

    Args:
        seed: decides the tokens.
        samples: windows in one epoch.
        eod_share: share of the end-of-document token; sample i has it i times as often, so masks are uneven.
    """

    seq_length = 16

    def __init__(self, seed: int = 0, samples: int = 12, eod_share: float = 0.0) -> None:
        random = np.random.default_rng(seed)
        self.tokens = random.integers(0, VOCAB_SIZE - 1, (samples, self.seq_length + 1))
        ends = random.random(self.tokens.shape) < eod_share * np.arange(samples)[:, None]
        self.tokens[ends] = TOKENIZER.eod_id
        self.num_tokens = self.tokens.size
        self.remainder_tokens = 0
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def sample_ids(self, start: int, count: int) -> np.ndarray:
        return np.arange(start, start + count) % len(self)

    def __getitem__(self, sample_id: int) -> np.ndarray:
        self.seen.append(int(sample_id))
        return self.tokens[sample_id]

    def token_ranges(self, sample_id: int) -> list:
        return []


def tiny_components(run: RunConfig, world: World, **views: View) -> Components:
    """Model, optimizer and views of `run`; `views` are train, valid and test."""
    from megatron_ext.data.datasets import Datasets
    from megatron_ext.training.components import build_components

    every = {"train": TokenView(), "valid": None, "test": None}
    return build_components(run, world, TOKENIZER, Datasets(**{**every, **views}))


def write_random_dataset(folder: Path, documents: int = 60) -> str:
    """Write a dataset of random documents without manifest; its prefix."""
    from megatron_ext.data.store.indexed_writer import write_indexed

    random = np.random.default_rng(0)
    prefix = str(folder / "data")
    write_indexed(prefix, [random.integers(0, VOCAB_SIZE, 40) for _ in range(documents)], np.uint16)
    return prefix
