"""Rules about data, checkpoints and reports."""

from __future__ import annotations

import math
from pathlib import Path

from megatron_ext.config.rules.registry import given, missing, rule, without_effect
from megatron_ext.config.run import RunConfig
from megatron_ext.config.sections.data import DATASET_ORDERS

_SPLIT_PATHS = "train_data_path valid_data_path test_data_path"


@rule(training=True)
def data_is_given(run: RunConfig) -> str | None:
    """Training needs a training set."""
    if run.data.data_path is not None or run.data.train_data_path is not None:
        return None
    return "training needs data: give --data-path PREFIX, or --train-data-path PREFIX (see tools/preprocess_data.py)"


@rule(needs="data_path")
def data_is_split_in_one_way(run: RunConfig) -> str | None:
    """One dataset to cut, or one per split."""
    others = given(run, _SPLIT_PATHS)
    return f"--data-path and {others[0]} exclude each other: cut one dataset, or give one per split" if others else None


@rule()
def split_is_readable(run: RunConfig) -> str | None:
    """One to three shares, the first one positive."""
    try:
        shares = [float(share) for share in run.data.split.split(",")]
    except ValueError:
        shares = []
    if 1 <= len(shares) <= 3 and all(math.isfinite(share) and share >= 0 for share in shares) and shares[0] > 0:
        return None
    return f"--split {run.data.split!r} is not one to three shares such as '969, 30, 1', the first above zero"


@rule()
def split_needs_a_dataset_to_cut(run: RunConfig) -> str | None:
    """Datasets given per split are not cut."""
    if not given(run, _SPLIT_PATHS) or run.data.data_path is not None:
        return None
    return without_effect(run, "split", "with --train-data-path; it cuts --data-path")


@rule(training=True)
def tokenizer_is_given(run: RunConfig) -> str | None:
    """The end of a document and the size of the vocabulary come from the tokenizer."""
    if run.data.tokenizer_type is None:
        return "training needs --tokenizer-type (and --tokenizer-model): the tokenizer the data was made with"
    if run.data.tokenizer_type == "NullTokenizer":
        return None
    absent = missing(run, "tokenizer_model")
    return f"--tokenizer-type {run.data.tokenizer_type} needs {absent[0]}" if absent else None


@rule()
def null_tokenizer_has_a_size_and_no_file(run: RunConfig) -> str | None:
    """It is nothing but a number of ids."""
    if run.data.tokenizer_type != "NullTokenizer":
        return None
    if run.model.vocab_size is None:
        return "--tokenizer-type NullTokenizer needs --vocab-size"
    return without_effect(run, "tokenizer_model", "with --tokenizer-type NullTokenizer")


@rule()
def tokenizer_file_needs_its_type(run: RunConfig) -> str | None:
    """A file alone does not say how to read it."""
    if run.data.tokenizer_type is not None or run.data.tokenizer_model is None:
        return None
    return f"--tokenizer-model {run.data.tokenizer_model} needs --tokenizer-type"


@rule(training=True)
def dataset_order_is_known_or_a_file(run: RunConfig) -> str | None:
    """A word, or the path of an order file."""
    order = run.data.dataset_order
    if order in DATASET_ORDERS or Path(order).is_file():
        return None
    return f"--dataset-order {order} is neither one of {', '.join(DATASET_ORDERS)} nor the path of a file"


@rule()
def index_cache_belongs_to_megatron_order(run: RunConfig) -> str | None:
    """The other orders store no index arrays."""
    if run.data.dataset_order == "megatron":
        return None
    return without_effect(run, "data_cache_path", "without --dataset-order megatron")


@rule()
def megatron_order_cuts_a_stream(run: RunConfig) -> str | None:
    """Megatron's order is made of windows over all epochs laid end to end."""
    if run.data.dataset_order != "megatron":
        return None
    flags = given(run, "dataset_packing pad_last_sample")
    return (
        f"{flags[0]} does not go with --dataset-order megatron, which cuts one stream of all epochs" if flags else None
    )


@rule()
def last_sample_is_padded_in_a_stream(run: RunConfig) -> str | None:
    """Documents as samples are padded anyway."""
    if run.data.dataset_packing == "stream":
        return None
    return without_effect(run, "pad_last_sample", f"with --dataset-packing {run.data.dataset_packing}")


@rule()
def positions_begin_again_where_there_are_any(run: RunConfig) -> str | None:
    """ALiBi goes by distance; without positions there is nothing to count. Beside isolated documents it is harmless."""
    kind = run.model.position_embedding_type
    if kind in ("learned_absolute", "rope") or run.data.reset_attention_mask:
        return None
    return without_effect(run, "reset_position_ids", f"with --position-embedding-type {kind}")


@rule()
def saving_options_need_a_folder(run: RunConfig) -> str | None:
    """Nothing is saved without --save."""
    if run.checkpoint.save is not None:
        return None
    return without_effect(run, "save_interval save_retain_interval keep_last no_save_optim", "without --save")


@rule(needs="save")
def retention_needs_a_save_interval(run: RunConfig) -> str | None:
    """One checkpoint at the end leaves nothing to choose from."""
    if run.checkpoint.save_interval is not None:
        return None
    return without_effect(run, "save_retain_interval keep_last", "without --save-interval")


@rule(needs="save_interval save_retain_interval")
def retained_steps_are_saved_steps(run: RunConfig) -> str | None:
    """A step that is kept must be saved."""
    every, kept = run.checkpoint.save_interval or 1, run.checkpoint.save_retain_interval or 1
    return f"--save-retain-interval {kept} is not a multiple of --save-interval {every}" if kept % every else None


@rule()
def loading_options_need_a_folder(run: RunConfig) -> str | None:
    """Nothing is loaded without --load."""
    if run.checkpoint.load is not None:
        return None
    names = (
        "ckpt_step finetune no_load_optim allow_older_checkpoint exit_on_missing_checkpoint "
        "override_opt_param_scheduler use_checkpoint_opt_param_scheduler"
    )
    return without_effect(run, names, "without --load")


@rule()
def schedule_comes_from_one_place(run: RunConfig) -> str | None:
    """The settings or the checkpoint."""
    checkpoint = run.checkpoint
    if not (checkpoint.override_opt_param_scheduler and checkpoint.use_checkpoint_opt_param_scheduler):
        return None
    return "--override-opt_param-scheduler and --use-checkpoint-opt_param-scheduler exclude each other"


@rule()
def tensorboard_interval_needs_a_folder(run: RunConfig) -> str | None:
    """No files, no points."""
    if run.logging.tensorboard_dir is not None:
        return None
    return without_effect(run, "tensorboard_log_interval", "without --tensorboard-dir")


@rule()
def profile_options_need_a_profile(run: RunConfig) -> str | None:
    """Nothing is timed without --profile, nor where nothing is trained."""
    if not run.logging.profile:
        return without_effect(run, "profile_step_start profile_step_end profile_ranks", "without --profile")
    return without_effect(run, "profile", "with --skip-train") if run.train.skip_train else None


@rule()
def profiled_steps_are_in_the_run(run: RunConfig) -> str | None:
    """Steps are timed, and as many after them traced."""
    start, end, last = run.logging.profile_step_start, run.logging.profile_step_end, run.train.train_iters
    if not run.logging.profile:
        return None
    if start >= end:
        return f"--profile-step-start {start} is not below --profile-step-end {end}"
    if last is not None and 2 * end - start > last:
        return (
            f"--profile times the steps from {start} to --profile-step-end {end} and traces those from {end} to "
            f"{2 * end - start}, beyond --train-iters {last}"
        )
    return None


@rule(training=True)
def profiled_ranks_are_in_the_world(run: RunConfig) -> str | None:
    """They count from 0."""
    beyond = [rank for rank in run.logging.profile_ranks if rank >= run.world_size]
    return f"--profile-ranks {beyond[0]} is beyond the world of {run.world_size} processes" if beyond else None
