"""Self-attention where several tensor-parallel ranks share a key/value head."""

from __future__ import annotations

import torch
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor


class SharedHeadsAttention(SelfAttention):
    """megatron-core's self-attention; this rank's heads do not keep those of all ranks in memory.

    With ng < tp the rows of one key/value head lie on several ranks: megatron-core gathers the projection of all
    ranks, `[s, b, (np + 2 ng) hn]`, and returns views of this rank's heads. Whatever saves a view for the backward
    pass would keep the whole: (np + 2 ng) instead of (np/tp + 2) heads per layer, 66 instead of 10 for Yayi2-30B over
    8 ranks. The backward pass sums the gradient of a shared head over its ranks and scatters it, so the projection's
    weight stays split by rows, and each row is counted once in the gradient norm.
    """

    def get_query_key_value_tensors(self, *arguments: object, **options: object) -> tuple[Tensor, ...]:
        """Return query `[s, b, np/tp, hn]`, key and value `[s, b, max(1, ng/tp), hn]`; collective over the tp group."""
        heads: tuple[Tensor, ...] = super().get_query_key_value_tensors(*arguments, **options)
        if self.config.num_query_groups >= self.world_size:
            return heads
        return tuple(part.clone(memory_format=torch.contiguous_format) for part in heads)
