"""Heads that are shared by tensor-parallel ranks come without the storage of all ranks' heads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor

from megatron_ext.model.shared_heads import SharedHeadsAttention

HEADS, SIZE = 4, 8


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """All heads of a group, `[s, b, (np + 2) hn]`; megatron-core's part is replaced by views of them."""
    whole = torch.randn(5, 2, (HEADS + 2) * SIZE, requires_grad=True)

    def views(*_: object, **__: object) -> list[Tensor]:
        parts = whole.unflatten(-1, (-1, SIZE))
        return [parts[:, :, 1:2], parts[:, :, HEADS : HEADS + 1], parts[:, :, HEADS + 1 :]]

    monkeypatch.setattr(SelfAttention, "get_query_key_value_tensors", views)
    return whole


def attention(groups: int, ranks: int) -> SharedHeadsAttention:
    module = SharedHeadsAttention.__new__(SharedHeadsAttention)
    torch.nn.Module.__init__(module)
    module.config, module.world_size = SimpleNamespace(num_query_groups=groups), ranks
    return module


def test_this_ranks_heads_own_their_memory(gathered: Tensor):
    heads = attention(groups=1, ranks=HEADS).get_query_key_value_tensors()
    expected = gathered.unflatten(-1, (-1, SIZE))
    for part, place in zip(heads, (1, HEADS, HEADS + 1), strict=True):
        assert torch.equal(part, expected[:, :, place : place + 1])
        assert part.is_contiguous() and part.untyped_storage().nbytes() == part.numel() * 4
    sum(part.sum() for part in heads).backward()
    assert gathered.grad.sum() == sum(part.numel() for part in heads)


def test_heads_that_are_not_shared_are_not_copied(gathered: Tensor):
    heads = attention(groups=4, ranks=4).get_query_key_value_tensors()
    assert all(part.untyped_storage().data_ptr() == gathered.untyped_storage().data_ptr() for part in heads)
