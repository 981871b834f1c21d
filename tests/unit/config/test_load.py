"""Defaults, then files in order, then flags; every value knows where it came from; a key is set once."""

import pytest

from megatron_ext.config import RunConfig, load_run_config, run_config_from_dict, run_config_to_dict
from megatron_ext.config.load import resolve
from megatron_ext.config.run import all_settings, section_of
from megatron_ext.errors import ConfigError


@pytest.fixture
def files(tmp_path):
    def write(*texts):
        argv = []
        for number, text in enumerate(texts):
            path = tmp_path / f"{number}.yaml"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            argv += ["--config", str(path)]
        return argv

    return write


def message_of(argv):
    with pytest.raises(ConfigError) as error:
        resolve(argv, None)
    return str(error.value)


def test_flags_win_over_files_and_files_over_defaults(files, tmp_path):
    argv = files("model:\n  num_layers: 4\n  hidden_size: 64\n", "optim:\n  # a comment\n  lr: 1e-4\n")
    resolved = resolve([*argv, "--num-layers", "6"], None)
    assert (resolved.run.model.num_layers, resolved.run.model.hidden_size, resolved.run.optim.lr) == (6, 64, 1e-4)
    assert resolved.sources["num_layers"] == "--num-layers"
    assert resolved.sources["hidden_size"] == f"{tmp_path}/0.yaml:3"
    assert resolved.sources["lr"] == f"{tmp_path}/1.yaml:3"
    assert resolved.sources["seed"] == "default"


def test_a_flag_wins_wherever_it_stands(files):
    argv = files("model: {num_layers: 4}")
    assert resolve(["--num-layers", "6", *argv], None).run.model.num_layers == 6


def test_values_follow_the_type_of_the_field_not_of_yaml(files):
    argv = files(
        "optim: {lr: 1e-4, adam_eps: 1}\n"
        "data: {split: 99, tokenizer_model: 0123, data_path: [0.3, a, 0.7, no]}\n"
        "model: {swiglu: true, position_embedding_type: none, vocab_size: null}\n"
        "train: {rampup_batch_size: [8, 8, 100]}\n".replace("adam_eps: 1", "adam_eps: 1e-8")
    )
    run = resolve(argv, None).run
    assert run.optim.lr == 1e-4
    assert run.data.split == "99" and run.data.tokenizer_model == "0123"
    assert run.data.data_path == ("0.3", "a", "0.7", "no")
    assert run.model.swiglu is True and run.model.position_embedding_type == "none" and run.model.vocab_size is None
    assert run.train.rampup_batch_size == (8, 8, 100)


def test_a_single_word_is_a_list_of_one(files):
    assert resolve(files("data: {data_path: corpus}"), None).run.data.data_path == ("corpus",)


def test_a_key_set_by_two_files_is_an_error_even_with_equal_values(files, tmp_path):
    message = message_of(files("model: {num_layers: 4}", "model: {num_layers: 4}"))
    assert f"1.yaml:1: model.num_layers is already set in {tmp_path}/0.yaml:1" in message


def test_all_problems_of_files_and_flags_are_told_together(files):
    message = message_of([*files("model: {num_layer: 4, swiglu: 2}"), "--lr", "x"])
    assert message.startswith("3 settings cannot be used:")


def test_absent_world_size_is_one_copy_of_the_model():
    run = resolve(["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "3"], None).run
    assert run.world_size == 6 and run.data_parallel_size == 1


def test_loading_checks_the_rules_for_the_purpose():
    shape = ["--num-layers", "2", "--hidden-size", "8", "--num-attention-heads", "2"]
    assert load_run_config(shape, 1, "model").run.model.num_layers == 2
    with pytest.raises(ConfigError, match="training needs --seq-length"):
        load_run_config(shape, 1)


def test_dictionary_form_round_trips_through_json():
    import json

    run = resolve(["--data-path", "a", "b", "--lr", "3e-4", "--rampup-batch-size", "8", "8", "99", "--swiglu"], 4).run
    stored = json.loads(json.dumps(run_config_to_dict(run)))
    assert stored["model"]["swiglu"] is True and stored["world_size"] == 4
    assert run_config_from_dict(stored) == run


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["model"].update(zebra=1),
        lambda d: d.update(zebra={}),
        lambda d: d.update(model=3),
        lambda d: d.update(world_size=0),
        lambda d: d["model"].update(num_layers="3"),
        lambda d: d["train"].update(bf16=1),
    ],
)
def test_a_stored_dictionary_is_read_strictly(change):
    stored = run_config_to_dict(RunConfig())
    change(stored)
    with pytest.raises(ConfigError):
        run_config_from_dict(stored)


def test_a_setting_absent_from_an_older_store_has_its_default():
    stored = run_config_to_dict(RunConfig())
    del stored["logging"]["progress"]
    assert run_config_from_dict(stored) == RunConfig()


def test_values_can_be_read_and_changed_by_name_alone():
    run = RunConfig().with_values(num_layers=3, lr=0.5, world_size=2)
    assert (run.get("num_layers"), run.get("lr"), run.world_size) == (3, 0.5, 2)
    assert set(section_of()) == set(all_settings())
