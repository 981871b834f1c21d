"""The cases of rule_cases.py for the rules about the architecture."""

from __future__ import annotations

from tests.unit.config.rule_cases import Case

ROPE = {"position_embedding_type": "rope"}
YARN = {**ROPE, "rope_scaling_type": "yarn", "rope_scaling_factor": 4, "original_max_position_embeddings": 8}

MODEL_CASES = {
    "architecture_is_complete": Case({}, {"num_layers": None, "hidden_size": None}, "--num-layers, --hidden-size"),
    "feed_forward_block_has_a_width": Case(
        {"swiglu": True, "hidden_size": 16, "num_attention_heads": 4, "ffn_hidden_size": 24},
        {"swiglu": True, "hidden_size": 16, "num_attention_heads": 4, "ffn_hidden_size": None},
        "give --ffn-hidden-size",
    ),
    "hidden_size_divides_into_heads": Case(
        {"hidden_size": 70, "kv_channels": 16}, {"hidden_size": 70}, "give --kv-channels"
    ),
    "query_heads_divide_into_groups": Case({"num_query_groups": 2}, {"num_query_groups": 6}, "--num-query-groups 6"),
    "grouped_query_attention_names_its_groups": Case(
        {"group_query_attention": True, "num_query_groups": 2}, {"group_query_attention": True}, "needs --num-query"
    ),
    "rotary_options_need_rope": Case(
        {"rotary_base": 5e6, "position_embedding_type": "rope"},
        {"rotary_base": 5e6, "position_embedding_type": "alibi"},
        "--rotary-base has no effect with --position-embedding-type alibi",
    ),
    "rotated_part_of_a_head_is_even": Case(
        {"position_embedding_type": "rope", "rotary_percent": 0.5},
        {"position_embedding_type": "rope", "kv_channels": 15},
        "15 x --rotary-percent 1.0 = 15",
    ),
    "single_biases_stand_alone": Case(
        {"add_mlp_down_bias": True, "add_bias_linear": False}, {"add_mlp_down_bias": True}, "--add-mlp-down-bias has no"
    ),
    "gelu_formula_needs_gelu": Case(
        {"openai_gelu": True}, {"openai_gelu": True, "swiglu": True}, "--openai-gelu has no effect with --swiglu"
    ),
    "rope_scaling_has_one_type": Case(
        {**ROPE, "use_rope_scaling": True, "rope_scaling_type": "llama3", "rope_scaling_high_freq_factor": 8},
        {**ROPE, "use_rope_scaling": True, "rope_scaling_type": "linear", "rope_scaling_factor": 2},
        "means --rope-scaling-type llama3, not linear",
    ),
    "rope_scaling_options_fit_the_type": Case(
        {**YARN, "rope_scaling_attention_factor": 1.0, "rope_scaling_beta_fast": 16},
        {**ROPE, "rope_scaling_factor": 2.0},
        "--rope-scaling-factor has no effect with --rope-scaling-type none",
    ),
    "rope_scaling_is_complete": Case(
        YARN, {**ROPE, "rope_scaling_type": "yarn"}, "yarn needs --rope-scaling-factor and --original-max-position"
    ),
    "rope_scaling_bounds_are_ordered": Case(
        {**YARN, "rope_scaling_beta_slow": 2}, {**YARN, "rope_scaling_beta_slow": 32}, "must be less than --rope-sc"
    ),
    "ntk_scaling_has_pairs_to_stretch": Case(
        {**ROPE, "rope_scaling_type": "ntk", "rope_scaling_factor": 2},
        {**ROPE, "rope_scaling_type": "ntk", "rope_scaling_factor": 2, "kv_channels": 2},
        "more than 2 rotated",
    ),
    "filtered_channels_divide_over_tensor_ranks": Case(
        {"localized_filtering": True},
        {"localized_filtering": True, "hidden_size": 66, "kv_channels": 8},
        "--hidden-size 66, which must be a multiple of 2 x tp = 4",
    ),
    "filtered_heads_are_not_shared": Case(
        {"localized_filtering": True, "num_query_groups": 2},
        {"localized_filtering": True, "num_query_groups": 1},
        "--num-query-groups 1 is not a multiple of --tensor-model-parallel-size 2",
    ),
    "positions_cover_the_sequence": Case(
        {"max_position_embeddings": 32}, {"max_position_embeddings": 31}, "--seq-length 32 is longer"
    ),
    "padded_vocabulary_holds_the_vocabulary": Case(
        {"vocab_size": 60, "padded_vocab_size": 60}, {"vocab_size": 61, "padded_vocab_size": 60}, "60 is smaller"
    ),
    "vocabulary_is_padded_in_one_way": Case(
        {"make_vocab_size_divisible_by": 64},
        {"make_vocab_size_divisible_by": 64, "padded_vocab_size": 60},
        "--make-vocab-size-divisible-by has no effect",
    ),
}
