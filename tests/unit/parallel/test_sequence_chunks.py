"""Every rank has two chunks of a sequence that weigh the same together, where megatron-core would cut them too."""

from __future__ import annotations

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_ext.parallel.sequence_chunks import chunks_of, join_parts, part_of, split_parts

SIZES = [1, 2, 3, 4]


def test_two_ranks_share_four_chunks():
    assert [chunks_of(rank, 2) for rank in range(2)] == [(0, 3), (1, 2)]
    assert part_of(torch.arange(8), 0, 2).tolist() == [0, 1, 6, 7]
    assert part_of(torch.arange(8), 1, 2).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("size", SIZES)
def test_every_rank_attends_to_equally_many_keys(size: int):
    """A query at place i sees i + 1 keys."""
    seen = {int((part_of(torch.arange(24), rank, size) + 1).sum()) for rank in range(size)}
    assert seen == {24 * 25 // 2 // size}


@pytest.mark.parametrize("size", SIZES)
def test_megatron_core_cuts_a_batch_at_the_same_places(size: int, monkeypatch: pytest.MonkeyPatch):
    tokens = torch.randint(100, (3, 24))
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: size)
    for rank in range(size):
        monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda rank=rank: rank)
        theirs = get_batch_on_this_cp_rank({"tokens": tokens})["tokens"]
        assert part_of(tokens, rank, size, dim=1).equal(theirs)


@pytest.mark.parametrize("size", SIZES)
def test_the_parts_of_all_ranks_make_the_whole(size: int):
    whole = torch.randn(24, 2, 5)
    parts = torch.stack([part_of(whole, rank, size) for rank in range(size)])
    assert join_parts(parts).equal(whole)
    assert split_parts(whole, size).equal(parts)
