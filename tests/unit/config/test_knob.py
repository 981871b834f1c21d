"""A declaration checks what it is given, whoever gives it."""

import pytest

from megatron_ext.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from megatron_ext.config.knob import BOOL, INT
from megatron_ext.config.run import all_settings
from megatron_ext.errors import ConfigError


def test_lists_become_tuples_and_whole_numbers_become_floats():
    assert DataConfig(data_path=["a", "b"]).data_path == ("a", "b")
    lr = OptimConfig(lr=1).lr
    assert lr == 1.0 and type(lr) is float


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (ModelConfig, "num_layers", 0),
        (ModelConfig, "num_layers", 2.0),
        (ModelConfig, "num_layers", True),
        (ModelConfig, "num_layers", "2"),
        (ModelConfig, "swiglu", 1),
        (ModelConfig, "normalization", "BatchNorm"),
        (ModelConfig, "normalization", None),
        (ModelConfig, "hidden_dropout", 1.0),
        (ModelConfig, "hidden_dropout", -0.1),
        (ModelConfig, "rotary_percent", 0.0),
        (OptimConfig, "lr", float("nan")),
        (OptimConfig, "lr", float("inf")),
        (OptimConfig, "lr", 0.0),
        (TrainConfig, "rampup_batch_size", (1, 2)),
        (TrainConfig, "rampup_batch_size", (1, 2, 0)),
        (TrainConfig, "recompute_modules", ("core_attn", "moe")),
        (DataConfig, "data_path", ()),
        (DataConfig, "data_path", "one"),
        (DataConfig, "tokenizer_model", ""),
    ],
)
def test_wrong_values_are_refused_by_name(make, name, value):
    with pytest.raises(ConfigError, match=rf"{make.__name__}\.{name} "):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [("hidden_dropout", [0.0, 0.99], [1.0]), ("rotary_percent", [1.0, 0.01], [0.0, 1.01]), ("min_lr", [0.0], [-1e-9])],
)
def test_bounds_mean_what_the_interval_notation_says(name, inside, outside):
    setting = all_settings()[name]
    for value in inside:
        setting.check(value)
    for value in outside:
        with pytest.raises(ValueError, match="expected number in"):
            setting.check(value)


def test_every_boolean_can_be_set_both_ways_by_flags():
    for setting in all_settings().values():
        assert bool(setting.off_flags) == (setting.kind == BOOL)
    assert all_settings()["add_bias_linear"].off_flags == ("--disable-bias-linear",)
    assert all_settings()["no_save_optim"].off_flags == ("--save-optim",)
    assert all_settings()["num_layers"].kind == INT
