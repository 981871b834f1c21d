"""Presets are the published settings."""

from __future__ import annotations

import pytest

from megatron_ext.tokenizer.presets import PRESETS, TrainingSettings

PUBLISHED = {  # size, coverage, normalization, dummy prefix, digits split, byte fallback
    "llama2": (32000, 0.99995, "identity", True, True, True),
    "baichuan2": (125696, 0.9999, "identity", False, True, True),
    "telechat-52b": (80000, 1.0, "identity", True, True, True),
    "telechat-12b": (120000, 0.9999, "identity", True, True, True),
    "internlm": (103168, 0.9999, "identity", False, True, True),
    "yuren": (5456, 1.0, "identity", True, False, False),
    "belle": (25000, 0.9995, "nmt_nfkc", True, False, False),
    "chinese-llama": (20000, 0.9995, "nmt_nfkc", True, False, False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_values(name: str):
    preset = PRESETS[name]
    assert PUBLISHED[name] == (
        preset.vocab_size, preset.character_coverage, preset.normalization,
        preset.add_dummy_prefix, preset.split_digits, preset.byte_fallback,
    )  # fmt: skip
    assert preset.model_type == ("unigram" if name == "chinese-llama" else "bpe")


def test_the_base_settings_are_llama2s():
    assert PRESETS["llama2"] == TrainingSettings()


def test_pieces_of_baichuan2_and_telechat():
    assert PRESETS["baichuan2"].max_piece_length == 32
    assert all(set(piece) == {"\u2581"} for piece in PRESETS["baichuan2"].user_defined_symbols)
    for name in ("telechat-52b", "telechat-12b"):
        assert set("0123456789") < set(PRESETS[name].user_defined_symbols)
    assert {"\n", "\t"} < set(PRESETS["telechat-12b"].user_defined_symbols)
