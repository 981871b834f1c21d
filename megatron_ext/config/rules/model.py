"""Rules about the architecture."""

from __future__ import annotations

from megatron_ext.config.rules.registry import missing, rule, without_effect
from megatron_ext.config.run import RunConfig


@rule()
def architecture_is_complete(run: RunConfig) -> str | None:
    """The three numbers that have no default."""
    absent = missing(run, "num_layers hidden_size num_attention_heads")
    if not absent:
        return None
    return f"the architecture is incomplete: give {', '.join(absent)}, or a --config file of configs/models"


@rule(needs="hidden_size num_attention_heads")
def hidden_size_divides_into_heads(run: RunConfig) -> str | None:
    """Without --kv-channels a head's size is h / np."""
    if run.model.kv_channels is not None or (run.model.hidden_size or 0) % run.model.heads == 0:
        return None
    return (
        f"--hidden-size {run.model.hidden_size} is not a multiple of --num-attention-heads {run.model.heads}: "
        "change one of them or give --kv-channels"
    )


@rule(needs="hidden_size")
def feed_forward_block_has_a_width(run: RunConfig) -> str | None:
    """Megatron's default width with SwiGLU, two thirds of 4h down to a multiple of 64, is nothing for a tiny h."""
    if run.model.ffn_size > 0:
        return None
    return f"--swiglu with --hidden-size {run.model.hidden_size} has no default width: give --ffn-hidden-size"


@rule()
def single_biases_stand_alone(run: RunConfig) -> str | None:
    """Where every projection has a bias there is nothing to choose."""
    if not run.model.add_bias_linear:
        return None
    names = "add_attention_output_bias add_mlp_up_bias add_mlp_down_bias"
    return without_effect(run, names, "without --disable-bias-linear: every projection has a bias")


@rule()
def gelu_formula_needs_gelu(run: RunConfig) -> str | None:
    """SwiGLU's gate is a SiLU."""
    return without_effect(run, "openai_gelu", "with --swiglu") if run.model.swiglu else None


@rule(needs="num_attention_heads num_query_groups")
def query_heads_divide_into_groups(run: RunConfig) -> str | None:
    """Each key/value head serves equally many query heads."""
    if run.model.heads % run.model.query_groups == 0:
        return None
    return f"--num-attention-heads {run.model.heads} is not a multiple of --num-query-groups {run.model.query_groups}"


@rule()
def grouped_query_attention_names_its_groups(run: RunConfig) -> str | None:
    """The switch alone says nothing."""
    if not run.model.group_query_attention or run.model.num_query_groups is not None:
        return None
    return "--group-query-attention needs --num-query-groups, the number of key/value heads"


@rule()
def rotary_options_need_rope(run: RunConfig) -> str | None:
    """ALiBi, learned and absent positions rotate nothing."""
    kind = run.model.position_embedding_type
    if kind == "rope":
        return None
    options = "rotary_base rotary_percent rotary_interleaved rope_scaling_type use_rope_scaling"
    return without_effect(run, options, f"with --position-embedding-type {kind}; rope uses it")


@rule(needs="hidden_size num_attention_heads")
def rotated_part_of_a_head_is_even(run: RunConfig) -> str | None:
    """RoPE turns pairs of channels."""
    rotated = int(run.model.head_dim * run.model.rotary_percent)
    if run.model.position_embedding_type != "rope" or (rotated > 0 and rotated % 2 == 0):
        return None
    return (
        f"RoPE turns pairs of channels, and head size {run.model.head_dim} x --rotary-percent "
        f"{run.model.rotary_percent} = {rotated} is not a positive even number"
    )


@rule(needs="hidden_size")
def filtered_channels_divide_over_tensor_ranks(run: RunConfig) -> str | None:
    """The channels between the two convolutions, half of h, are cut over the ranks."""
    hidden, tp = run.model.hidden_size or 0, run.parallel.tensor_model_parallel_size
    if not run.model.localized_filtering or hidden % (2 * tp) == 0:
        return None
    return f"--localized-filtering halves --hidden-size {hidden}, which must be a multiple of 2 x tp = {2 * tp}"


@rule(needs="num_attention_heads")
def filtered_heads_are_not_shared(run: RunConfig) -> str | None:
    """Two inputs have two projections, and a rank's rows of them are those of whole key/value heads."""
    groups, tp = run.model.query_groups, run.parallel.tensor_model_parallel_size
    if not run.model.localized_filtering or groups % tp == 0:
        return None
    return (
        f"--localized-filtering needs whole key/value heads on every rank: --num-query-groups {groups} is not a "
        f"multiple of --tensor-model-parallel-size {tp}"
    )


@rule(needs="seq_length max_position_embeddings")
def positions_cover_the_sequence(run: RunConfig) -> str | None:
    """The model is made for at least the training length."""
    length, limit = run.train.seq_length or 0, run.model.max_position_embeddings or 0
    if length <= limit:
        return None
    return f"--seq-length {length} is longer than --max-position-embeddings {limit}: raise the one or lower the other"


@rule()
def norm_head_has_a_weight_of_its_own(run: RunConfig) -> str | None:
    """Rows that are normalised as outputs but not as embeddings are two weights, and no model format ties them."""
    if not run.model.norm_head or run.model.untie_embeddings_and_output_weights:
        return None
    return "--norm-head normalises the rows of the output layer: it needs --untie-embeddings-and-output-weights"


@rule()
def output_bias_stands_beside_plain_products(run: RunConfig) -> str | None:
    """No published model says whether a multiplier takes the bias in, and NormHead makes logits of directions alone."""
    model = run.model
    if not model.add_output_layer_bias or not (model.norm_head or model.logits_multiplier != 1.0):
        return None
    other = "--norm-head" if model.norm_head else f"--logits-multiplier {model.logits_multiplier:g}"
    return f"--add-output-layer-bias and {other} exclude each other"


@rule(needs="vocab_size padded_vocab_size")
def padded_vocabulary_holds_the_vocabulary(run: RunConfig) -> str | None:
    """Padding only adds rows."""
    if (run.model.padded_vocab_size or 0) >= (run.model.vocab_size or 0):
        return None
    return f"--padded-vocab-size {run.model.padded_vocab_size} is smaller than --vocab-size {run.model.vocab_size}"


@rule(needs="padded_vocab_size")
def vocabulary_is_padded_in_one_way(run: RunConfig) -> str | None:
    """A fixed number of rows leaves nothing to round."""
    return without_effect(run, "make_vocab_size_divisible_by", "beside --padded-vocab-size")
