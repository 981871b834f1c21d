"""The architecture: what a checkpoint's tensors mean, whatever layout computes them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob
from megatron_ext.config.rope_scaling import RopeScaling


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
    rotary_interleaved: bool = knob(
        False, "rotate neighbouring channels 2d and 2d + 1 together, as ChatGLM and MOSS do, not d and d + D/2"
    )
    rope_scaling_type: str = knob(
        "none",
        "how RoPE is stretched to sequences longer than it was made for",
        choices=("none", "linear", "ntk", "yarn", "llama3"),
    )
    use_rope_scaling: bool = knob(False, "Megatron-LM's name for --rope-scaling-type llama3")
    rope_scaling_factor: float | None = knob(
        None, "how many times longer the sequences are; absent with llama3: 8", bounds="[1, inf)"
    )
    original_max_position_embeddings: int | None = knob(
        None,
        "longest sequence before stretching (yarn, llama3); absent with llama3: 8192",
        unit="tokens",
        bounds="[1, inf)",
    )
    rope_scaling_beta_fast: float = knob(
        32.0, "yarn leaves channels that turn at least so often over the original length", bounds="(0, inf)"
    )
    rope_scaling_beta_slow: float = knob(
        1.0, "yarn slows channels that turn at most so often by the whole factor", bounds="(0, inf)"
    )
    rope_scaling_low_freq_factor: float = knob(
        1.0, "llama3 slows channels that turn at most so often by the whole factor", bounds="(0, inf)"
    )
    rope_scaling_high_freq_factor: float = knob(
        4.0, "llama3 leaves channels that turn at least so often over the original length", bounds="(0, inf)"
    )
    rope_scaling_attention_factor: float | None = knob(
        None, "yarn multiplies rotated queries and keys by this; absent: 0.1 ln(factor) + 1", bounds="(0, inf)"
    )
    normalization: str = knob(
        "LayerNorm", "which norm stands before attention, MLP and output", choices=("LayerNorm", "RMSNorm")
    )
    layernorm_epsilon: float = knob(
        1e-5, "added to the variance inside the norm", flag="--norm-epsilon", bounds="(0, 1)"
    )
    swiglu: bool = knob(False, "gated feed-forward block with SiLU instead of GELU")
    openai_gelu: bool = knob(False, "GELU by its tanh formula (GPT-2, BLOOM, MOSS), not by the exact one")
    untie_embeddings_and_output_weights: bool = knob(False, "give the output layer its own weight")
    norm_head: bool = knob(
        False, "divide each row of the output layer's weight by its length before the product (Baichuan 2's NormHead)"
    )
    embedding_multiplier: float = knob(1.0, "what the output of the embedding is multiplied by", bounds="(0, inf)")
    logits_multiplier: float = knob(1.0, "what the logits are multiplied by; TeleChat-52B: 0.03125", bounds="(0, inf)")
    add_output_layer_bias: bool = knob(False, "a bias for each entry of the vocabulary in the output layer, as in MOSS")
    add_bias_linear: bool = knob(
        True, "biases in the attention and feed-forward projections", flag="--disable-bias-linear"
    )
    add_qkv_bias: bool = knob(False, "biases in the query/key/value projection, also without the others")
    add_attention_output_bias: bool = knob(False, "a bias in the attention's output projection, without the others")
    add_mlp_up_bias: bool = knob(False, "a bias in the first feed-forward projection, without the others")
    add_mlp_down_bias: bool = knob(False, "a bias in the last feed-forward projection, without the others")
    embedding_layernorm: bool = knob(
        False,
        "a norm, of the kind of --normalization, right after the word embedding, as in BLOOM",
        aliases=("--embed-layernorm",),
    )
    parallel_residual: bool = knob(
        False, "attention and feed-forward block side by side: both read one norm and add to the residual stream"
    )
    localized_filtering: bool = knob(
        False,
        "queries and keys read each token together with the two before it, through two convolutions with a norm "
        "(Yuan 2.0's localized filtering attention)",
        aliases=("--use-lf-gate",),
    )
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
    def biased_projections(self) -> tuple[bool, bool, bool, bool]:
        """Whether query/key/value, attention output, first and last feed-forward projection have a bias."""
        chosen = (self.add_qkv_bias, self.add_attention_output_bias, self.add_mlp_up_bias, self.add_mlp_down_bias)
        qkv, attention_output, mlp_up, mlp_down = (self.add_bias_linear or bias for bias in chosen)
        return qkv, attention_output, mlp_up, mlp_down

    @property
    def rope_scaling(self) -> RopeScaling | None:
        """How RoPE is stretched, Llama 3.1's own numbers filled in; None for plain RoPE."""
        kind = "llama3" if self.use_rope_scaling else self.rope_scaling_type
        if kind == "none":
            return None
        factor, original = (8.0, 8192) if kind == "llama3" else (1.0, 0)
        return RopeScaling(
            kind=kind,
            factor=factor if self.rope_scaling_factor is None else self.rope_scaling_factor,
            original_positions=self.original_max_position_embeddings or original,
            beta_fast=self.rope_scaling_beta_fast,
            beta_slow=self.rope_scaling_beta_slow,
            low_freq_factor=self.rope_scaling_low_freq_factor,
            high_freq_factor=self.rope_scaling_high_freq_factor,
            attention_factor=self.rope_scaling_attention_factor,
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
