"""The words of --tokenizer-type are those that the tokenizer package builds."""

import pytest

from megatron_ext.config.data import TOKENIZER_TYPES


def test_same_words():
    build = pytest.importorskip("megatron_ext.tokenizer.build")
    assert set(TOKENIZER_TYPES) == set(build.TOKENIZER_TYPES)
