"""The architecture: what a checkpoint's tensors mean, whatever layout computes them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Shape and blocks of one decoder. Names are megatron-core's; None means "derived", see the properties."""

    num_layers: int | None = knob(None, "number of transformer layers", bounds="[1, inf)")
    hidden_size: int | None = knob(None, "width of the residual stream, h", bounds="[1, inf)")
    ffn_hidden_size: int | None = knob(
        None,
        "width of the feed-forward block, f (of the gate and of the up half each with --swiglu); "
        "derived when absent: 4h, with --swiglu 8h/3 rounded down to a multiple of 64",
        bounds="[1, inf)",
    )
    num_attention_heads: int | None = knob(None, "number of query heads, np", bounds="[1, inf)")
    group_query_attention: bool = knob(False, "grouped-query attention; needs --num-query-groups, which implies it")
    num_query_groups: int | None = knob(
        None, "number of key/value heads, ng; absent: as many as query heads", bounds="[1, inf)"
    )
    kv_channels: int | None = knob(None, "size of one head, hn; absent: h / np", bounds="[1, inf)")
    max_position_embeddings: int | None = knob(
        None, "longest sequence the model is made for; absent: --seq-length", unit="tokens", bounds="[1, inf)"
    )
    position_embedding_type: str = knob(
        "learned_absolute",
        "how positions enter the model",
        choices=("learned_absolute", "rope", "alibi", "none"),
    )
    rotary_base: float = knob(10000.0, "base of the rotary frequencies", bounds="(1, inf)")
    rotary_percent: float = knob(1.0, "share of each head that is rotated", bounds="(0, 1]")
    normalization: str = knob(
        "LayerNorm", "which norm stands before attention, MLP and output", choices=("LayerNorm", "RMSNorm")
    )
    layernorm_epsilon: float = knob(
        1e-5, "added to the variance inside the norm", flag="--norm-epsilon", bounds="(0, 1)"
    )
    swiglu: bool = knob(False, "gated feed-forward block with SiLU instead of GELU")
    untie_embeddings_and_output_weights: bool = knob(False, "give the output layer its own weight")
    add_bias_linear: bool = knob(
        True, "biases in the attention and feed-forward projections", flag="--disable-bias-linear"
    )
    add_qkv_bias: bool = knob(False, "biases in the query/key/value projection, also without the others")
    hidden_dropout: float = knob(0.1, "dropout of the hidden state", bounds="[0, 1)")
    attention_dropout: float = knob(0.1, "dropout of the attention probabilities", bounds="[0, 1)")
    init_method_std: float = knob(0.02, "standard deviation of the initial weights", bounds="(0, inf)")
    make_vocab_size_divisible_by: int = knob(
        128, "pad the vocabulary to a multiple of this times --tensor-model-parallel-size", bounds="[1, inf)"
    )
    vocab_size: int | None = knob(
        None, "entries of the vocabulary; absent: the tokenizer's. Needed with NullTokenizer", bounds="[1, inf)"
    )
    padded_vocab_size: int | None = knob(
        None, "rows of the embedding, instead of padding; pins the shape whatever the layout", bounds="[1, inf)"
    )

    @property
    def ffn_size(self) -> int:
        """The feed-forward width in use. Source: Megatron-LM core_v0.16.1 training/arguments.py (validate_args)."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        hidden = self._shape(self.hidden_size, "hidden_size")
        return int(4 * hidden * 2 / 3 / 64) * 64 if self.swiglu else 4 * hidden

    @property
    def head_dim(self) -> int:
        """Size of one attention head, hn."""
        if self.kv_channels is not None:
            return self.kv_channels
        return self._shape(self.hidden_size, "hidden_size") // self.heads

    @property
    def heads(self) -> int:
        """Number of query heads, np."""
        return self._shape(self.num_attention_heads, "num_attention_heads")

    @property
    def query_groups(self) -> int:
        """Number of key/value heads, ng; equal to the query heads without grouped-query attention."""
        return self.heads if self.num_query_groups is None else self.num_query_groups

    @staticmethod
    def _shape(value: int | None, name: str) -> int:
        if value is None:
            raise AttributeError(f"ModelConfig.{name} is not set")
        return value
