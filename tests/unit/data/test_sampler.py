"""Every sample of a global batch is computed once, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.data.sampler import micro_batch_ids


@given(micro_batch_size=st.integers(1, 5), dp_size=st.integers(1, 6), num_micro_batches=st.integers(1, 5))
def test_the_ranks_share_out_the_batch(micro_batch_size: int, dp_size: int, num_micro_batches: int):
    ids = np.random.default_rng(0).permutation(micro_batch_size * dp_size * num_micro_batches)
    parts = [micro_batch_ids(ids, micro_batch_size, rank, dp_size) for rank in range(dp_size)]
    assert all(len(part) == num_micro_batches for part in parts)
    assert all(len(micro) == micro_batch_size for part in parts for micro in part)
    in_time_order = np.concatenate([part[step] for step in range(num_micro_batches) for part in parts])
    np.testing.assert_array_equal(in_time_order, ids)


@given(micro_batch_size=st.integers(1, 5), dp_size=st.integers(1, 6), num_micro_batches=st.integers(1, 5))
def test_consecutive_micro_batches_follow_each_other_on_a_rank(
    micro_batch_size: int, dp_size: int, num_micro_batches: int
):
    ids = np.random.default_rng(0).permutation(micro_batch_size * dp_size * num_micro_batches)
    parts = [micro_batch_ids(ids, micro_batch_size, rank, dp_size, consecutive=True) for rank in range(dp_size)]
    assert all([len(micro) for micro in part] == [micro_batch_size] * num_micro_batches for part in parts)
    np.testing.assert_array_equal(np.concatenate([micro for part in parts for micro in part]), ids)


def test_a_batch_that_does_not_divide_is_a_programming_error():
    with pytest.raises(ValueError, match="10 samples"):
        micro_batch_ids(np.arange(10), 3, 0, 1)
