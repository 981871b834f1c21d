"""For each rule a change of a complete run that keeps it, one that breaks it, and what is said then."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config import RunConfig

# A complete training run on 8 processes: tp 2 x pp 2 x dp 2.
BASE = RunConfig().with_values(
    world_size=8,
    num_layers=8,
    hidden_size=64,
    num_attention_heads=4,
    tensor_model_parallel_size=2,
    pipeline_model_parallel_size=2,
    seq_length=32,
    micro_batch_size=1,
    global_batch_size=8,
    train_iters=10,
    lr=1e-3,
    data_path=("corpus",),
    tokenizer_type="SentencePieceTokenizer",
    tokenizer_model="t.model",
)
SAMPLES = {"train_iters": None, "train_samples": 1000}
RAMP = {**SAMPLES, "rampup_batch_size": (4, 2, 100)}


@dataclass
class Case:
    good: dict
    bad: dict
    says: str


CASES = {
    "world_size_holds_whole_model_copies": Case({"world_size": 4}, {"world_size": 6}, "2 x --pipeline.* 2 = 4"),
    "attention_heads_divide_over_tensor_ranks": Case(
        {}, {"num_attention_heads": 5, "kv_channels": 8}, "--num-attention-heads 5"
    ),
    "query_groups_divide_over_tensor_ranks": Case(
        {"num_query_groups": 1},
        {"num_query_groups": 3, "num_attention_heads": 6, "kv_channels": 8},
        "groups 3 is neither",
    ),
    "query_key_value_rows_divide_over_tensor_ranks": Case(
        {"num_query_groups": 1, "tensor_model_parallel_size": 4, "kv_channels": 6},
        {"num_query_groups": 1, "tensor_model_parallel_size": 4, "kv_channels": 5},
        r"4 \+ 2 x --num-query-groups 1\) x --kv-channels 5 = 30 rows",
    ),
    "feed_forward_divides_over_tensor_ranks": Case(
        {"ffn_hidden_size": 100}, {"ffn_hidden_size": 99}, "--ffn-hidden-size 99"
    ),
    "hidden_size_divides_over_tensor_ranks": Case(
        {"hidden_size": 66, "kv_channels": 8}, {"hidden_size": 65, "kv_channels": 8}, "--hidden-size 65"
    ),
    "padded_vocabulary_divides_over_tensor_ranks": Case(
        {"padded_vocab_size": 64}, {"padded_vocab_size": 65}, "--padded-vocab-size 65"
    ),
    "layers_divide_over_stages": Case(
        {"num_layers": 6}, {"num_layers": 7}, "--num-layers 7 .*: count .* with --account-for-loss-in-pipeline-split"
    ),
    "stage_divides_into_chunks_of_layers": Case(
        {"num_layers_per_virtual_pipeline_stage": 2}, {"num_layers_per_virtual_pipeline_stage": 4}, "the 4 layers"
    ),
    "stage_divides_into_number_of_chunks": Case(
        {"num_virtual_stages_per_pipeline_rank": 2}, {"num_virtual_stages_per_pipeline_rank": 3}, "the 4 layers"
    ),
    "interleaving_is_asked_for_in_one_way": Case(
        {"num_layers_per_virtual_pipeline_stage": 2},
        {"num_layers_per_virtual_pipeline_stage": 2, "num_virtual_stages_per_pipeline_rank": 2},
        "give one of them",
    ),
    "interleaving_needs_several_stages": Case(
        {"num_virtual_stages_per_pipeline_rank": 2},
        {"num_virtual_stages_per_pipeline_rank": 2, "pipeline_model_parallel_size": 1},
        "--num-virtual-stages-per-pipeline-rank has no effect",
    ),
    "sequence_parallel_needs_tensor_ranks": Case(
        {"sequence_parallel": True},
        {"sequence_parallel": True, "tensor_model_parallel_size": 1},
        "--sequence-parallel has no effect",
    ),
    "sequence_divides_over_tensor_ranks": Case(
        {"sequence_parallel": True}, {"sequence_parallel": True, "seq_length": 33}, "--seq-length 33"
    ),
    "sequence_divides_over_context_ranks": Case(
        {"context_parallel_size": 2, "sequence_parallel": True},
        {"context_parallel_size": 2, "sequence_parallel": True, "seq_length": 36},
        "--seq-length 36 is not a multiple of 8, twice --context-parallel-size 2 x --tensor-model-parallel-size 2",
    ),
    "overlapped_gather_needs_its_partners": Case(
        {"overlap_param_gather": True, "overlap_grad_reduce": True, "use_distributed_optimizer": True},
        {"overlap_param_gather": True, "overlap_grad_reduce": True},
        "needs --use-distributed-optimizer",
    ),
    "bucket_size_needs_overlapped_reduction": Case(
        {"ddp_bucket_size": 9, "overlap_grad_reduce": True}, {"ddp_bucket_size": 9}, "--ddp-bucket-size has no effect"
    ),
    "nccl_needs_a_gpu": Case(
        {"distributed_backend": "gloo", "device": "cpu"}, {"distributed_backend": "nccl", "device": "cpu"}, "nccl needs"
    ),
    "transformer_engine_needs_a_gpu": Case(
        {"transformer_impl": "local", "device": "cpu"},
        {"transformer_impl": "transformer_engine", "device": "cpu"},
        "transformer_engine needs a GPU",
    ),
    "compiling_needs_something_to_compile": Case(
        {"compile": True, "swiglu": True},
        {"compile": True, "swiglu": False, "normalization": "LayerNorm", "device": "cpu"},
        "--compile has no effect without",
    ),
    "products_add_gradients_on_gpus": Case(
        {"gradient_accumulation_fusion": False, "device": "auto"},
        {"gradient_accumulation_fusion": False, "device": "cpu"},
        "--no-gradient-accumulation-fusion has no effect with --device cpu",
    ),
    "fusing_the_loss_is_not_for_fp16": Case(
        {"cross_entropy_loss_fusion": False, "bf16": True},
        {"cross_entropy_loss_fusion": False, "fp16": True},
        "--no-cross-entropy-loss-fusion has no effect with --fp16",
    ),
    "training_settings_are_complete": Case({}, {"seq_length": None, "lr": None}, "--seq-length, --lr"),
    "length_of_the_run_is_given": Case(SAMPLES, {"train_iters": None}, "--train-iters or --train-samples"),
    "length_of_the_run_is_given_once": Case(SAMPLES, {"train_tokens": 8000}, "give one of them"),
    "global_batch_divides_evenly": Case(
        {"global_batch_size": 6}, {"global_batch_size": 7}, "7 is not a multiple of .* size 2 = 2"
    ),
    "ramp_up_counts_samples": Case(RAMP, {"rampup_batch_size": (4, 2, 100)}, "needs --train-samples"),
    "ramp_up_steps_are_whole_batches": Case(
        RAMP, {**RAMP, "rampup_batch_size": (4, 1, 100)}, "INCREMENT 1 is not a multiple"
    ),
    "ramp_up_reaches_the_global_batch": Case(
        RAMP,
        {**RAMP, "rampup_batch_size": (2, 4, 100)},
        "START 2 does not grow by INCREMENT 4 to --global-batch-size 8",
    ),
    "interleaved_micro_batches_divide_over_stages": Case(
        {"num_virtual_stages_per_pipeline_rank": 2},
        {"num_virtual_stages_per_pipeline_rank": 2, "global_batch_size": 6},
        "batches of 6 make 3 per rank",
    ),
    "samples_hold_one_batch": Case(
        {**SAMPLES, "train_samples": 8}, {**SAMPLES, "train_samples": 7}, "less than one global batch of 8"
    ),
    "one_half_precision_type": Case({"bf16": True}, {"bf16": True, "fp16": True}, "exclude each other"),
    "loss_scaling_needs_fp16": Case({"fp16": True, "hysteresis": 3}, {"bf16": True, "hysteresis": 3}, "without --fp16"),
    "fixed_loss_scale_stands_alone": Case(
        {"fp16": True, "loss_scale": 8.0}, {"fp16": True, "loss_scale": 8.0, "hysteresis": 3}, "--hysteresis has no"
    ),
    "loss_scales_are_ordered": Case(
        {"fp16": True, "min_loss_scale": 2.0}, {"fp16": True, "min_loss_scale": 2.0**33}, "above --initial-loss-scale"
    ),
    "full_recomputation_says_how": Case(
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "full", "recompute_method": "block"},
        "full needs --recompute-num-layers",
    ),
    "recomputed_modules_need_selective": Case(
        {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
        {"recompute_modules": ("mlp",)},
        "--recompute-modules has no effect",
    ),
    "recomputed_layers_fit_the_stage": Case(
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 4},
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 5},
        "exceeds the 4 layers",
    ),
    "garbage_interval_needs_manual_gc": Case(
        {"manual_gc": True, "manual_gc_interval": 5}, {"manual_gc_interval": 5}, "without --manual-gc"
    ),
    "evaluation_interval_needs_batches": Case(
        {"eval_interval": 5}, {"eval_interval": 5, "eval_iters": 0}, "with --eval-iters 0"
    ),
    "evaluating_only_needs_batches": Case(
        {"skip_train": True}, {"skip_train": True, "eval_iters": 0}, "leaves nothing to do"
    ),
    "lengths_have_the_unit_of_the_run": Case(
        {"train_iters": None, "train_tokens": 32000, "lr_warmup_tokens": 256},
        {"lr_warmup_tokens": 8},
        "--lr-warmup-tokens cannot .* --train-iters",
    ),
    "learning_rates_are_ordered": Case({"min_lr": 1e-3}, {"min_lr": 2e-3}, "--min-lr 0.002 is above --lr 0.001"),
    "warm_up_is_given_once": Case(
        {"lr_warmup_fraction": 0.1}, {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 1}, "both give the warm-up"
    ),
    "warm_up_is_shorter_than_the_decay": Case(
        {"lr_warmup_iters": 9}, {"lr_warmup_iters": 5, "lr_decay_iters": 5}, "5 is not shorter than the decay, 5 iters"
    ),
    "lengths_in_tokens_hold_a_sample": Case(
        {"train_iters": None, "train_tokens": 320_000, "lr_warmup_tokens": 3200},
        {"train_iters": None, "train_tokens": 320_000, "lr_warmup_tokens": 30},
        "--lr-warmup-tokens 30 is less than one sample of --seq-length",
    ),
    "warm_up_start_needs_a_warm_up": Case(
        {"lr_warmup_init": 1e-5, "lr_warmup_iters": 2}, {"lr_warmup_init": 1e-5}, "without a warm-up"
    ),
    "steps_belong_to_multi_step": Case(
        {"lr_decay_style": "multi-step", "lr_multi_step_points": ("0.5:0.5",)},
        {"lr_multi_step_points": ("0.5:0.5",)},
        "--lr-multi-step-points has no effect without",
    ),
    "step_points_are_readable": Case(
        {"lr_decay_style": "multi-step", "lr_multi_step_points": ("0.5:0.5", "0.75:1e-2")},
        {"lr_decay_style": "multi-step", "lr_multi_step_points": ("0.5:0.5", "0.5:0.1")},
        "0.5:0.1 cannot be used",
    ),
    "rate_without_a_last_phase_has_no_floor": Case(
        {"min_lr": 1e-4}, {"min_lr": 1e-4, "lr_decay_style": "constant"}, "--min-lr has no effect"
    ),
    "last_phase_belongs_to_wsd": Case(
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2}, {"lr_wsd_decay_iters": 2}, "without --lr-decay-style WSD"
    ),
    "wsd_says_how_long_its_last_phase_is": Case(
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 2}, {"lr_decay_style": "WSD"}, "WSD needs"
    ),
    "wsd_last_phase_fits_the_decay": Case(
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 8, "lr_warmup_iters": 2},
        {"lr_decay_style": "WSD", "lr_wsd_decay_iters": 8, "lr_warmup_iters": 3},
        "exceed the decay, 10 iters",
    ),
    "constant_weight_decay_has_one_value": Case(
        {"weight_decay": 0.1}, {"start_weight_decay": 0.1}, "--start-weight-decay has no effect"
    ),
    "weight_decay_schedule_is_complete": Case(
        {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1, "end_weight_decay": 0.2},
        {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1},
        "cosine needs --end-weight-decay",
    ),
    "distributed_optimizer_is_adam_or_lion": Case(
        {"optimizer": "lion", "use_distributed_optimizer": True},
        {"optimizer": "muon", "use_distributed_optimizer": True},
        "--optimizer muon does not go with --use-distributed-optimizer",
    ),
    "muon_splits_whole_heads": Case(
        {"optimizer": "muon", "num_query_groups": 1, "muon_split_qkv": False},
        {"optimizer": "muon", "num_query_groups": 1},
        "--num-query-groups 1 is not a multiple of --tensor-model-parallel-size 2: give --muon-no-split-qkv",
    ),
    "optimizer_options_fit_the_optimizer": Case(
        {"optimizer": "muon", "muon_momentum": 0.5, "adam_beta2": 0.5},
        {"optimizer": "adam", "muon_split_qkv": False},
        "--muon-no-split-qkv has no effect with --optimizer adam",
    ),
    "multipliers_are_readable": Case(
        {"lr_multipliers": ("embedding.*=0.1",), "weight_decay_multipliers": ("*norm.weight=1",)},
        {"lr_multipliers": ("embedding.*=-1",)},
        "--lr-multipliers embedding.* cannot be read",
    ),
    "trained_parameters_are_named_in_one_way": Case(
        {"train_only": ("embedding.*",)}, {"train_only": ("embedding.*",), "freeze": ("output_layer.*",)}, "give one of"
    ),
    "data_is_given": Case({"data_path": None, "train_data_path": ("a",)}, {"data_path": None}, "give --data-path"),
    "data_is_split_in_one_way": Case({}, {"valid_data_path": ("a",)}, "--valid-data-path exclude each other"),
    "split_is_readable": Case({"split": "98,2"}, {"split": "0,1"}, "--split '0,1' is not"),
    "split_needs_a_dataset_to_cut": Case(
        {"split": "98,2"}, {"split": "98,2", "data_path": None, "train_data_path": ("a",)}, "--split has no effect"
    ),
    "tokenizer_is_given": Case({}, {"tokenizer_model": None}, "SentencePieceTokenizer needs --tokenizer-model"),
    "null_tokenizer_has_a_size_and_no_file": Case(
        {"tokenizer_type": "NullTokenizer", "tokenizer_model": None, "vocab_size": 99},
        {"tokenizer_type": "NullTokenizer", "tokenizer_model": None},
        "needs --vocab-size",
    ),
    "tokenizer_file_needs_its_type": Case({}, {"tokenizer_type": None}, "t.model needs --tokenizer-type"),
    "dataset_order_is_known_or_a_file": Case(
        {"dataset_order": __file__}, {"dataset_order": "shuffled"}, "neither one of permuted, megatron, sequential"
    ),
    "index_cache_belongs_to_megatron_order": Case(
        {"data_cache_path": "c", "dataset_order": "megatron"}, {"data_cache_path": "c"}, "--data-cache-path has no"
    ),
    "megatron_order_cuts_a_stream": Case(
        {"dataset_order": "megatron"},
        {"dataset_order": "megatron", "dataset_packing": "documents"},
        "--dataset-packing does not go with --dataset-order megatron",
    ),
    "moving_weights_have_an_order_to_move": Case(
        {"blend_schedule": ("0:9,1", "2e9:4,1")},
        {"blend_reweight_interval": 5, "dataset_order": "megatron"},
        "--blend-reweight-interval has no effect with --dataset-order megatron",
    ),
    "last_sample_is_padded_in_a_stream": Case(
        {"pad_last_sample": True},
        {"pad_last_sample": True, "dataset_packing": "documents"},
        "--pad-last-sample has no effect with --dataset-packing documents",
    ),
    "reweighting_says_how_often": Case(
        {"blend_reweight_interval": 5, "blend_reweight_rate": 0.5, "blend_reweight_floor": 0.2},
        {"blend_reweight_rate": 0.5, "blend_reference_losses": ("2",)},
        "--blend-reweight-rate, --blend-reference-losses have no effect without --blend-reweight-interval",
    ),
    "weights_follow_one_plan": Case(
        {"blend_reweight_interval": 5},
        {"blend_reweight_interval": 5, "blend_schedule": ("0:1,1",)},
        "--blend-reweight-interval and --blend-schedule both change the weights",
    ),
    "reference_losses_are_numbers": Case(
        {"blend_reweight_interval": 5, "blend_reference_losses": ("2.5", "0")},
        {"blend_reweight_interval": 5, "blend_reference_losses": ("2.5", "low")},
        "--blend-reference-losses low is not a loss",
    ),
    "positions_begin_again_where_there_are_any": Case(
        {"reset_position_ids": True, "position_embedding_type": "rope"},
        {"reset_position_ids": True, "position_embedding_type": "alibi"},
        "--reset-position-ids has no effect with --position-embedding-type alibi",
    ),
    "norm_head_has_a_weight_of_its_own": Case(
        {"norm_head": True, "untie_embeddings_and_output_weights": True},
        {"norm_head": True},
        "--norm-head .* needs --untie-embeddings-and-output-weights",
    ),
    "output_bias_stands_beside_plain_products": Case(
        {"add_output_layer_bias": True, "embedding_multiplier": 2.0},
        {"add_output_layer_bias": True, "logits_multiplier": 2.0},
        "--add-output-layer-bias and --logits-multiplier 2 exclude each other",
    ),
    "saving_options_need_a_folder": Case({"save": "d", "save_interval": 2}, {"save_interval": 2}, "without --save"),
    "retention_needs_a_save_interval": Case(
        {"save": "d", "save_interval": 2, "keep_last": 2}, {"save": "d", "keep_last": 2}, "--save-keep-last has no"
    ),
    "retained_steps_are_saved_steps": Case(
        {"save": "d", "save_interval": 2, "save_retain_interval": 4},
        {"save": "d", "save_interval": 2, "save_retain_interval": 5},
        "5 is not a multiple of --save-interval 2",
    ),
    "loading_options_need_a_folder": Case(
        {"load": "d", "finetune": True}, {"finetune": True, "ckpt_step": 3}, "--ckpt-step, --finetune have no effect"
    ),
    "schedule_comes_from_one_place": Case(
        {"load": "d", "override_opt_param_scheduler": True},
        {"load": "d", "override_opt_param_scheduler": True, "use_checkpoint_opt_param_scheduler": True},
        "exclude each other",
    ),
    "tensorboard_interval_needs_a_folder": Case(
        {"tensorboard_dir": "d", "tensorboard_log_interval": 2},
        {"tensorboard_log_interval": 2},
        "without --tensorboard",
    ),
    "profile_options_need_a_profile": Case(
        {"profile": True, "profile_step_start": 4, "profile_step_end": 6},
        {"profile_step_start": 4, "profile_ranks": (1,)},
        "--profile-step-start, --profile-ranks have no effect without --profile",
    ),
    "profiled_steps_are_in_the_run": Case(
        {"profile": True, "profile_step_start": 0, "profile_step_end": 5},
        {"profile": True, "profile_step_start": 0, "profile_step_end": 6},
        "traces those from 6 to 12, beyond --train-iters 10",
    ),
    "profiled_ranks_are_in_the_world": Case(
        {"profile": True, "profile_step_start": 4, "profile_step_end": 6, "profile_ranks": (0, 7)},
        {"profile": True, "profile_step_start": 4, "profile_step_end": 6, "profile_ranks": (0, 8)},
        "--profile-ranks 8 is beyond the world of 8",
    ),
    # a step has 256 tokens, and the last of 10 begins after 2304
    "length_stages_are_readable": Case(
        {"seq_length_warmup": ("8:1e3",)}, {"seq_length_warmup": ("8:1e3", "16:1.5")}, "up 16:1.5 cannot be read"
    ),
    "length_stages_rise": Case(
        {"seq_length_warmup": ("8:256", "16:256")},
        {"seq_length_warmup": ("8:256", "8:512")},
        "8:512 follows 8:256, and lengths must rise",
    ),
    "length_stages_cut_samples_into_equal_sequences": Case(
        {"seq_length_warmup": ("16:256",)},
        {"seq_length_warmup": ("12:256",)},
        "12:256: 12 is no smaller divisor of --seq-length 32",
    ),
    "length_stages_divide_over_tensor_ranks": Case(
        {"seq_length_warmup": ("2:256",), "sequence_parallel": True},
        {"seq_length_warmup": ("1:256",), "sequence_parallel": True},
        "1 is not a multiple of --tensor-model-parallel-size 2",
    ),
    "length_stages_divide_over_context_ranks": Case(
        {"seq_length_warmup": ("4:256",), "context_parallel_size": 2},
        {"seq_length_warmup": ("2:256",), "context_parallel_size": 2},
        "2 is not a multiple of 4, twice --context-parallel-size 2",
    ),
    "length_stages_hold_a_step": Case(
        {"seq_length_warmup": ("8:256",)}, {"seq_length_warmup": ("8:255",)}, "8 x --seq-length 32 = 256 tokens"
    ),
    "length_stages_end_before_the_run": Case(
        {"seq_length_warmup": ("8:1152", "16:1152")},
        {"seq_length_warmup": ("8:1152", "16:1153")},
        "takes 2305 tokens, and the last step of the run begins after 2304",
    ),
}
