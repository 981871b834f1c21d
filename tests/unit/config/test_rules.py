"""Each rule has a case that keeps it and a case that breaks it; all broken rules are told together."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.config import RunConfig, check_rules
from megatron_ext.config.rules import RULES, failures
from megatron_ext.config.run import all_settings
from megatron_ext.errors import ConfigError
from tests.unit.config.data_parallel_cases import DATA_PARALLEL_CASES, ORDERED
from tests.unit.config.model_rule_cases import MODEL_CASES
from tests.unit.config.pipeline_rule_cases import COUNTED, PIPELINE_CASES
from tests.unit.config.rule_cases import BASE, RAMP, SAMPLES
from tests.unit.config.rule_cases import CASES as OTHER_CASES

CASES = {**OTHER_CASES, **MODEL_CASES, **PIPELINE_CASES, **DATA_PARALLEL_CASES}


def test_every_rule_has_a_good_and_a_bad_case():
    assert set(CASES) == set(RULES)


def test_the_base_run_keeps_all_rules():
    check_rules(BASE)


@pytest.mark.parametrize("name", CASES)
def test_good_case_keeps_every_rule(name):
    assert failures(BASE.with_values(**CASES[name].good)) == {}


@pytest.mark.parametrize("name", CASES)
def test_bad_case_breaks_the_rule_and_says_so(name):
    import re

    message = failures(BASE.with_values(**CASES[name].bad))[name]
    assert re.search(CASES[name].says, message), message


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rampup_batch_size": (3, 2, 9)}, "ramp_up_steps_are_whole_batches"),
        ({"rampup_batch_size": (8, 2, 9)}, "ramp_up_reaches_the_global_batch"),
        ({"rampup_batch_size": (2, 2, 9), "global_batch_size": None}, "ramp_up_reaches_the_global_batch"),
        (
            {**RAMP, "num_virtual_stages_per_pipeline_rank": 2, "rampup_batch_size": (6, 2, 9)},
            "interleaved_micro_batches_divide_over_stages",
        ),
        ({"recompute_num_layers": 1}, "full_recomputation_says_how"),
        ({"recompute_granularity": "selective", "recompute_method": "block"}, "full_recomputation_says_how"),
        ({**SAMPLES, "lr_decay_iters": 5}, "lengths_have_the_unit_of_the_run"),
        ({"lr_warmup_iters": 10}, "warm_up_is_shorter_than_the_decay"),
        ({"lr_warmup_init": 1.0, "lr_warmup_iters": 1}, "learning_rates_are_ordered"),
        ({"sgd_momentum": 0.1}, "optimizer_options_fit_the_optimizer"),
        ({"dataset_order": "megatron", "pad_last_sample": True}, "megatron_order_cuts_a_stream"),
        ({**ORDERED, "context_parallel_size": 2}, "ordered_sums_are_made_at_the_end"),
        ({**ORDERED, "hidden_dropout": 0.1}, "ordered_sums_are_of_the_same_numbers"),
        ({**ORDERED, "deterministic_data_parallel_parts": 1}, "parts_of_ordered_sums_are_equal"),
        ({**ORDERED, "deterministic_data_parallel_parts": 6}, "parts_of_ordered_sums_are_equal"),
        ({**ORDERED, "deterministic_data_parallel_parts": 16}, "parts_of_ordered_sums_are_equal"),
        ({"num_layers_per_virtual_pipeline_stage": 3}, "stage_divides_into_chunks_of_layers"),
        ({"num_layers_per_virtual_pipeline_stage": 2, **COUNTED}, "stage_divides_into_chunks_of_layers"),
        ({"num_virtual_stages_per_pipeline_rank": 2, **COUNTED}, "stage_divides_into_number_of_chunks"),
        (
            {"num_virtual_stages_per_pipeline_rank": 2, "num_layers_in_last_pipeline_stage": 3},
            "stage_divides_into_number_of_chunks",
        ),
        ({"num_layers_in_first_pipeline_stage": 8}, "layers_beside_the_ends_divide_over_stages"),
        ({"num_layers_in_last_pipeline_stage": 9}, "layers_beside_the_ends_divide_over_stages"),
        (
            {"num_layers_in_first_pipeline_stage": 3, "num_layers_in_last_pipeline_stage": 4},
            "layers_beside_the_ends_divide_over_stages",
        ),
        ({"pipeline_model_parallel_layout": "tEt*3|t*4L"}, "layout_begins_with_the_embedding_and_ends_with_the_loss"),
        ({"pipeline_model_parallel_layout": "Et*4|Et*4L"}, "layout_begins_with_the_embedding_and_ends_with_the_loss"),
        ({"pipeline_model_parallel_layout": "|Et*4|t*4|L"}, "layout_begins_with_the_embedding_and_ends_with_the_loss"),
        ({"pipeline_model_parallel_layout": "Et*4|t*4mL"}, "layout_is_readable"),
        ({"pipeline_model_parallel_layout": "Et*4|((t)*2)*2L"}, "layout_is_readable"),
        (
            {"pipeline_model_parallel_layout": "E|t*4|t*4|L", "num_layers_per_virtual_pipeline_stage": 2},
            "chunks_of_uneven_stages_are_numbered",
        ),
        (
            {"pipeline_model_parallel_layout": "Et*4|t*4L", "num_layers_in_last_pipeline_stage": 4},
            "uneven_stages_are_asked_for_in_one_way",
        ),
        (
            {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 3},
            "recomputed_layers_fit_the_stage",
        ),
        (
            {
                "recompute_granularity": "full",
                "recompute_method": "uniform",
                "recompute_num_layers": 2,
                "num_layers_in_last_pipeline_stage": 5,
            },
            "recomputed_layers_fit_the_stage",
        ),
        ({"tokenizer_type": None, "tokenizer_model": None}, "tokenizer_is_given"),
        ({"split": "1,2,3,4"}, "split_is_readable"),
        ({"profile": True, "profile_step_start": 5, "profile_step_end": 5}, "profiled_steps_are_in_the_run"),
        ({"profile": True, "skip_train": True}, "profile_options_need_a_profile"),
        ({"split": "1,-2"}, "split_is_readable"),
        ({"split": "nan"}, "split_is_readable"),
        (
            {"add_output_layer_bias": True, "norm_head": True, "untie_embeddings_and_output_weights": True},
            "output_bias_stands_beside_plain_products",
        ),
        (
            {"weight_decay_incr_style": "linear", "start_weight_decay": 0.2, "end_weight_decay": 0.1},
            "weight_decay_schedule_is_complete",
        ),
        ({"overlap_param_gather": True, "use_distributed_optimizer": True}, "overlapped_gather_needs_its_partners"),
        (
            {"tokenizer_type": "NullTokenizer", "vocab_size": 9},
            "null_tokenizer_has_a_size_and_no_file",
        ),
    ],
)
def test_further_bad_cases(change, name):
    assert name in failures(BASE.with_values(**change))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_losses_are_compiled_on_a_gpu_whatever_the_layers_are(device):
    """What `auto` means is not known yet when the rules are asked first."""
    change = {"compile": True, "swiglu": False, "normalization": "LayerNorm", "device": device}
    assert "compiling_needs_something_to_compile" not in failures(BASE.with_values(**change))


@pytest.mark.parametrize("kind", ["learned_absolute", "rope", "alibi", "none"])
def test_both_resets_together_are_megatrons_usual_pair_whatever_the_positions(kind):
    pair = {"reset_position_ids": True, "reset_attention_mask": True}
    assert failures(BASE.with_values(position_embedding_type=kind, **pair)) == {}


def test_all_failures_are_told_together():
    broken = BASE.with_values(world_size=6, bf16=True, fp16=True, seq_length=None)
    with pytest.raises(ConfigError) as error:
        check_rules(broken)
    assert str(error.value).startswith("3 rules do not hold:") and str(error.value).count("\n  - ") == 3


def test_a_complete_architecture_is_enough_for_tools():
    run = RunConfig().with_values(num_layers=2, hidden_size=8, num_attention_heads=2)
    check_rules(run, "model")
    assert "training_settings_are_complete" in failures(run, "train")
    with pytest.raises(ConfigError, match="architecture is incomplete"):
        check_rules(RunConfig(), "model")


VALUES = {
    "integer": st.integers(1, 9),
    "number": st.floats(0.1, 0.9),
    "true or false": st.booleans(),
    "text": st.sampled_from(["a", "98,2", "x y", "Et*4|t*4L", "E|t|L"]),
    "words": st.lists(st.sampled_from(["a", "1"]), min_size=1, max_size=3).map(tuple),
    "integers": st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 99)),
}


def any_value(setting):
    if setting.knob.choices:
        words = st.sampled_from(setting.knob.choices)
        return words.map(lambda word: (word,)) if setting.kind == "words" else words
    if setting.knob.bounds == "[2, inf)":
        return st.integers(2, 9)
    if setting.kind == "number" and setting.knob.bounds in ("(1, inf)", "[1, inf)"):
        return st.floats(2, 9)
    return VALUES[setting.kind]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.lists(st.sampled_from(list(all_settings().values())), max_size=25), st.integers(1, 16))
def test_rules_answer_and_never_crash_whatever_is_set(data, chosen, world_size):
    values = {setting.name: data.draw(any_value(setting)) for setting in chosen}
    for base in (BASE, RunConfig()):
        for purpose in ("train", "model"):
            failures(base.with_values(world_size=world_size, **values), purpose)
