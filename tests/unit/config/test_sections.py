"""The settings themselves: unique, frozen, explained; the sizes derived within one section."""

import dataclasses

import pytest

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.config.knob import settings_of
from megatron_ext.config.run import SECTIONS, all_settings


def test_names_are_unique_over_all_sections():
    names = [name for cls in SECTIONS.values() for name in settings_of(cls)]
    assert len(names) == len(set(names))


def test_flags_are_unique_over_all_settings():
    flags = [flag for s in all_settings().values() for flag in (*s.on_flags, *s.off_flags)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("setting", all_settings().values(), ids=lambda s: s.name)
def test_every_default_passes_its_own_check_and_every_setting_is_explained(setting):
    assert setting.check(setting.default) == setting.default
    assert len(setting.knob.help) > 8
    assert setting.optional == (setting.default is None)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_sections_are_frozen_and_take_keywords_only(section):
    name = next(iter(settings_of(section)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), name, None)
    with pytest.raises(TypeError):
        section(None)


def test_derived_sizes_follow_megatron():
    assert ModelConfig(hidden_size=4096, num_attention_heads=32).ffn_size == 16384
    assert ModelConfig(hidden_size=4096, num_attention_heads=32, swiglu=True).ffn_size == 10880
    assert ModelConfig(hidden_size=4096, ffn_hidden_size=11008, swiglu=True).ffn_size == 11008
    assert ModelConfig(hidden_size=512, num_attention_heads=8).head_dim == 64
    assert ModelConfig(hidden_size=512, num_attention_heads=8, kv_channels=80).head_dim == 80
    assert ModelConfig(hidden_size=512, num_attention_heads=8).query_groups == 8
    assert ModelConfig(hidden_size=512, num_attention_heads=8, num_query_groups=2).query_groups == 2


def test_ranks_of_one_model_copy():
    assert ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=3).model_parallel_size == 6
