"""A part is index arrays; its lengths are what stands in them."""

from __future__ import annotations

import numpy as np

from megatron_ext.data.packing.plan import PackedPart, ragged_ranges


def test_lengths_count_spans_and_padding():
    part = PackedPart(
        suffix="",
        seq_length=10,
        starts=np.array([0, 10, 3]),
        ends=np.array([4, 15, 5]),
        bounds=np.array([0, 2, 3]),
        padding=np.array([1, 8]),
        unlearned=np.zeros(2, np.int64),
    )
    assert part.lengths().tolist() == [1 + 4 + 5, 8 + 2]
    assert (part.num_blocks, part.num_tokens) == (2, 20)


def test_ragged_ranges_count_up_from_each_start():
    assert ragged_ranges(np.array([5, 100, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    assert ragged_ranges(np.array([], np.int64), np.array([], np.int64)).tolist() == []
