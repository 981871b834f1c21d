"""The words of --tokenizer-type are those that the tokenizer package builds."""

from megatron_ext.config.sections.data import TOKENIZER_TYPES
from megatron_ext.tokenizer import build


def test_same_words():
    assert set(TOKENIZER_TYPES) == set(build.TOKENIZER_TYPES)
