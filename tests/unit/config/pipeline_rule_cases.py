"""The cases of the rules about unequal pipeline stages, as in rule_cases.py: changes of its run."""

from __future__ import annotations

from tests.unit.config.rule_cases import Case

FOUR_STAGES = {"pipeline_model_parallel_size": 4, "world_size": 8}
COUNTED = {"account_for_embedding_in_pipeline_split": True, "account_for_loss_in_pipeline_split": True}

PIPELINE_CASES = {
    "uneven_stages_are_asked_for_in_one_way": Case(
        {"num_layers_in_first_pipeline_stage": 3, "num_layers_in_last_pipeline_stage": 5},
        {"num_layers_in_first_pipeline_stage": 3, **COUNTED},
        "--decoder-first-pipeline-num-layers and --account-for-embedding-in-pipeline-split, --account-for-loss-in-pipe",
    ),
    "uneven_stages_need_several_stages": Case(
        {"num_layers_in_first_pipeline_stage": 3},
        {"num_layers_in_first_pipeline_stage": 8, "pipeline_model_parallel_size": 1},
        "--decoder-first-pipeline-num-layers has no effect with --pipeline-model-parallel-size 1",
    ),
    "layers_beside_the_ends_divide_over_stages": Case(
        {"num_layers": 7, "num_layers_in_first_pipeline_stage": 1, **FOUR_STAGES},
        {"num_layers": 8, "num_layers_in_first_pipeline_stage": 1, **FOUR_STAGES},
        "--decoder-first-pipeline-num-layers leaves 7 of --num-layers 8 for 3 other stages",
    ),
    "layers_and_counted_parts_divide_over_stages": Case(
        {"num_layers": 7, "account_for_loss_in_pipeline_split": True},
        {"num_layers": 7, **COUNTED},
        "--num-layers 7 with --account-for-embedding.* makes 9, not a multiple",
    ),
    "chunks_of_uneven_stages_are_numbered": Case(
        {"num_layers_in_first_pipeline_stage": 2, "num_virtual_stages_per_pipeline_rank": 2},
        {"num_layers_in_first_pipeline_stage": 2, "num_layers_per_virtual_pipeline_stage": 1},
        "use --num-virtual-stages-per-pipeline-rank",
    ),
    "layout_is_readable": Case(
        {"pipeline_model_parallel_layout": "Et*3|(t,)*5L"},
        {"pipeline_model_parallel_layout": "Et*3|(t*5L"},
        r"'Et\*3\|\(t\*5L': '\(t\*5L' is no part of a layout",
    ),
    "layout_begins_with_the_embedding_and_ends_with_the_loss": Case(
        {"pipeline_model_parallel_layout": "E|t*4|t*4|L"},
        {"pipeline_model_parallel_layout": "Et*4|t*4|L|"},
        "last stage end with the only L",
    ),
    "layout_holds_every_layer": Case(
        {"pipeline_model_parallel_layout": "Ett|t*6L"},
        {"pipeline_model_parallel_layout": "Ett|t*7L"},
        r"places 9 transformer layers \(t\), --num-layers is 8",
    ),
    "layout_divides_over_stages": Case(
        {"pipeline_model_parallel_layout": "Et*2|t*2|t*2|t*2L"},
        {"pipeline_model_parallel_layout": "Et*2|t*2|t*4L"},
        "has 3 stages, not a multiple of --pipeline-model-parallel-size 2",
    ),
    "layout_agrees_on_virtual_stages": Case(
        {"pipeline_model_parallel_layout": "Et*2|t*2|t*2|t*2L", "num_virtual_stages_per_pipeline_rank": 2},
        {"pipeline_model_parallel_layout": "Et*4|t*4L", "num_virtual_stages_per_pipeline_rank": 2},
        "has 2 stages, --num-virtual-stages-per-pipeline-rank 2 x --pipeline-model-parallel-size 2 asks for 4",
    ),
}
