"""The cases of rule_cases.py for the rules of data parallelism."""

from __future__ import annotations

from tests.unit.config.rule_cases import RAMP, Case

ORDERED = {"deterministic_data_parallel": True, "hidden_dropout": 0.0, "attention_dropout": 0.0}

DATA_PARALLEL_CASES = {
    "optimizer_instances_are_of_the_distributed_optimizer": Case(
        {"num_distributed_optimizer_instances": 2, "use_distributed_optimizer": True},
        {"num_distributed_optimizer_instances": 2},
        "--num-distributed-optimizer-instances has no effect without --use-distributed-optimizer",
    ),
    "optimizer_instances_divide_the_ranks": Case(
        {"num_distributed_optimizer_instances": 2, "use_distributed_optimizer": True, "world_size": 16},
        {"num_distributed_optimizer_instances": 3, "use_distributed_optimizer": True},
        "3 does not divide the data-parallel size 2",
    ),
    "ordered_sums_are_made_at_the_end": Case(
        ORDERED, {**ORDERED, "overlap_grad_reduce": True}, "--deterministic-data-parallel excludes --overlap-grad-re"
    ),
    "ordered_sums_go_in_pairs": Case(
        {**ORDERED, "world_size": 32}, {**ORDERED, "world_size": 12, "global_batch_size": 12}, "size 3 is no power of"
    ),
    "ordered_sums_are_of_the_same_numbers": Case(
        ORDERED, {**ORDERED, "attention_dropout": 0.1}, "needs --hidden-dropout 0 and --attention-dropout 0"
    ),
    "parts_are_of_ordered_sums": Case(
        {**ORDERED, "deterministic_data_parallel_parts": 4},
        {"deterministic_data_parallel_parts": 4},
        "--deterministic-data-parallel-parts has no effect",
    ),
    "parts_of_ordered_sums_are_equal": Case(
        {**ORDERED, **RAMP, "rampup_batch_size": (4, 4, 100), "deterministic_data_parallel_parts": 4},
        {**ORDERED, **RAMP, "deterministic_data_parallel_parts": 4},
        "4 does not divide the 2 micro-batches of 2 samples",
    ),
}
