"""The gate compares what it says: within the tolerance passes, anything else, NaN included, fails."""

from __future__ import annotations

import pytest
import torch

from checkpoint_convert.parity import TOLERANCE, compare, parity_tokens, require
from megatron_ext.errors import ConversionError

LOGITS = torch.tensor([[[1.0, -8.0, 0.5]]])


def changed(by: float) -> torch.Tensor:
    other = LOGITS.clone()
    other[0, 0, 2] += by
    return other


def test_the_difference_is_relative_to_the_largest_logit_and_has_no_sign():
    for sign in (1, -1):
        parity = compare(LOGITS, changed(sign * 4.0))
        assert (parity.largest_difference, parity.largest_logit, parity.relative) == (4.0, 8.0, 0.5)
    require(compare(LOGITS, changed(0.5 * TOLERANCE * 8)))
    with pytest.raises(ConversionError, match="must be at most 1e-05"):
        require(compare(LOGITS, changed(-2 * TOLERANCE * 8)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_fail_on_either_side(bad):
    for pair in ((LOGITS, changed(bad)), (changed(bad), LOGITS), (changed(bad), changed(bad))):
        with pytest.raises(ConversionError):
            require(compare(*pair))


def test_another_shape_fails():
    with pytest.raises(ConversionError, match=r"\[1, 1, 4\]"):
        compare(LOGITS, torch.zeros(1, 1, 4))


@pytest.mark.parametrize("vocab_size", [2, 101, 64000])
def test_tokens_are_in_the_vocabulary_with_both_ends_and_fit_the_model(vocab_size):
    rows = parity_tokens(vocab_size, 64, 4096)
    assert [len(row) for row in rows] == [32, 32]
    assert rows[0][0] == 0 and rows[-1][0] == vocab_size - 1
    assert all(0 <= index < vocab_size for row in rows for index in row)
    assert len({index for row in rows for index in row}) > min(vocab_size, 64) / 2
    assert rows == parity_tokens(vocab_size, 64, 4096)
    assert [len(row) for row in parity_tokens(vocab_size, 1000, 16)] == [16, 16]
