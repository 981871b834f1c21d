"""Rules about how gradients and optimizer state are shared among the data-parallel ranks."""

from __future__ import annotations

from megatron_ext.config.rules.registry import given, rule, without_effect
from megatron_ext.config.run import RunConfig


@rule()
def optimizer_instances_are_of_the_distributed_optimizer(run: RunConfig) -> str | None:
    """Another optimizer has its whole state on every rank."""
    if run.parallel.use_distributed_optimizer:
        return None
    return without_effect(run, "num_distributed_optimizer_instances", "without --use-distributed-optimizer")


@rule()
def optimizer_instances_divide_the_ranks(run: RunConfig) -> str | None:
    """Every instance has equally many data-parallel ranks."""
    instances, dp = run.parallel.num_distributed_optimizer_instances, run.data_parallel_size
    if dp % instances == 0:
        return None
    return f"--num-distributed-optimizer-instances {instances} does not divide the data-parallel size {dp}"


@rule()
def ordered_sums_are_made_at_the_end(run: RunConfig) -> str | None:
    """The sums wait for the last micro-batch, and know data-parallel ranks only."""
    if not run.parallel.deterministic_data_parallel:
        return None
    flags = given(run, "overlap_grad_reduce overlap_param_gather context_parallel_size")
    return f"--deterministic-data-parallel excludes {', '.join(flags)}" if flags else None


@rule()
def ordered_sums_go_in_pairs(run: RunConfig) -> str | None:
    """Halves of halves of the global batch: the ranks are a power of two."""
    dp = run.data_parallel_size
    if not run.parallel.deterministic_data_parallel or dp & (dp - 1) == 0:
        return None
    return (
        f"--deterministic-data-parallel sums in pairs and the data-parallel size {dp} is no power of two: start "
        "another number of processes"
    )


@rule()
def ordered_sums_are_of_the_same_numbers(run: RunConfig) -> str | None:
    """Dropout draws by the place of a rank, so other ranks would drop other elements."""
    model = run.model
    if not run.parallel.deterministic_data_parallel or not (model.hidden_dropout or model.attention_dropout):
        return None
    return (
        "--deterministic-data-parallel needs --hidden-dropout 0 and --attention-dropout 0: what is dropped depends on "
        "the rank"
    )


@rule()
def parts_are_of_ordered_sums(run: RunConfig) -> str | None:
    """Nothing else is summed in parts."""
    if run.parallel.deterministic_data_parallel:
        return None
    return without_effect(run, "deterministic_data_parallel_parts", "without --deterministic-data-parallel")


@rule(needs="deterministic_data_parallel_parts micro_batch_size")
def parts_of_ordered_sums_are_equal(run: RunConfig) -> str | None:
    """A power of two of parts, whole ones on every rank, of whole micro-batches at every size of the batch."""
    parts, dp = run.parallel.deterministic_data_parallel_parts or 1, run.data_parallel_size
    named = f"--deterministic-data-parallel-parts {parts}"
    if parts & (parts - 1):
        return f"{named} is no power of two"
    if dp and parts % dp:
        return f"{named} is less than the data-parallel size {dp}"
    micro_batch_size = run.train.micro_batch_size or 1
    for size in (run.global_batch_size, *(run.train.rampup_batch_size or ())[:2]):
        if size % (parts * micro_batch_size):
            return f"{named} does not divide the {size // micro_batch_size} micro-batches of {size} samples"
    return None
