"""Closed forms over the architecture: rows of the vocabulary, parameters. Pure arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config import ModelConfig, RunConfig
from megatron_ext.errors import ConfigError


def padded_vocab_size(run: RunConfig, vocab_size: int) -> int:
    """Rows of the embedding and of the output layer, all tensor-parallel ranks together.

    `--padded-vocab-size` if given, else the next multiple of `--make-vocab-size-divisible-by` x tp. The rows from
    `vocab_size` on are never a token and take no part in the softmax.

    Args:
        run: the setting and the layout.
        vocab_size: number of tokens the tokenizer knows.

    Raises:
        ConfigError: `--padded-vocab-size` is smaller than the vocabulary or does not divide over the ranks.

    Source: Megatron-LM core_v0.16.1 training/tokenizer/tokenizer.py (_vocab_size_with_padding).
    """
    rows, tp = run.model.padded_vocab_size, run.parallel.tensor_model_parallel_size
    if rows is None:
        multiple = run.model.make_vocab_size_divisible_by * tp
        return -(-vocab_size // multiple) * multiple
    if rows < vocab_size:
        raise ConfigError(
            f"--padded-vocab-size {rows} is smaller than the vocabulary", f"the vocabulary has {vocab_size} entries"
        )
    if rows % tp:
        raise ConfigError(f"--padded-vocab-size {rows} is not a multiple of --tensor-model-parallel-size {tp}")
    return rows


@dataclass(frozen=True)
class ParameterCounts:
    """Number of parameters of each part; the layer parts are of one layer."""

    layers: int
    word_embedding: int
    position_embedding: int
    attention: int
    mlp: int
    layer_norms: int
    embedding_norm: int
    final_norm: int
    output_layer: int

    @property
    def layer(self) -> int:
        """Parameters of one transformer layer."""
        return self.attention + self.mlp + self.layer_norms

    @property
    def total(self) -> int:
        """All parameters; tied embeddings count once."""
        outside = self.word_embedding + self.position_embedding + self.embedding_norm
        outside += self.final_norm + self.output_layer
        return self.layers * self.layer + outside


def parameter_counts(model: ModelConfig, vocab_rows: int, max_positions: int | None = None) -> ParameterCounts:
    """Count the parameters of the full model, as trained by all ranks together.

    Args:
        model: a complete architecture.
        vocab_rows: rows of the embedding, padding included if it is to be counted.
        max_positions: rows of a learned position embedding; `model.max_position_embeddings` when absent.
    """
    hidden, ffn = model.hidden_size or 0, model.ffn_size
    query, key_value = model.heads * model.head_dim, model.query_groups * model.head_dim
    qkv_width, fc1_width = query + 2 * key_value, ffn * (2 if model.swiglu else 1)
    norm = hidden * (1 if model.normalization == "RMSNorm" else 2)
    qkv_bias, output_bias, fc1_bias, fc2_bias = model.biased_projections
    learned = model.position_embedding_type == "learned_absolute"
    # two convolutions over two tokens, h -> h/2 -> h, their biases, a norm
    filtering = 2 * hidden * hidden + hidden // 2 + hidden + norm if model.localized_filtering else 0
    return ParameterCounts(
        layers=model.num_layers or 0,
        word_embedding=vocab_rows * hidden,
        position_embedding=(max_positions or model.max_position_embeddings or 0) * hidden if learned else 0,
        attention=hidden * qkv_width
        + query * hidden
        + (qkv_width if qkv_bias else 0)
        + (hidden if output_bias else 0)
        + filtering,
        mlp=hidden * fc1_width + ffn * hidden + (fc1_width if fc1_bias else 0) + (hidden if fc2_bias else 0),
        layer_norms=norm if model.parallel_residual else 2 * norm,
        embedding_norm=norm if model.embedding_layernorm else 0,
        final_norm=norm,
        output_layer=(vocab_rows * hidden if model.untie_embeddings_and_output_weights else 0)
        + (vocab_rows if model.add_output_layer_bias else 0),
    )
