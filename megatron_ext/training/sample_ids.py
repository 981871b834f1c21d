"""The ids of the samples that a step really read, put together from all data-parallel ranks."""

from __future__ import annotations

import torch.distributed as dist
from megatron.core import parallel_state


class StepSamples:
    """Collects the sample ids of this rank's micro-batches from step to step.

    Args:
        consecutive: as `micro_batch_ids` was told.
    """

    def __init__(self, consecutive: bool = False) -> None:
        self._consecutive = consecutive
        self._micro_batches: list[list[int]] = []

    def record(self, ids: list[int]) -> None:
        """Take the ids of the next micro-batch."""
        self._micro_batches.append(ids)

    def gathered(self) -> list[int]:
        """The ids of the global batch since the last call, in its order. Collective over the data-parallel ranks.

        Empty on pipeline stages that read no data.
        """
        mine, self._micro_batches = self._micro_batches, []
        group = parallel_state.get_data_parallel_group()
        ranks: list[list[list[int]]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(ranks, mine, group=group)
        return global_batch(ranks, self._consecutive)


def global_batch(ranks: list[list[list[int]]], consecutive: bool = False) -> list[int]:
    """The ids of a global batch from those of each rank's micro-batches: the inverse of `micro_batch_ids`."""
    if consecutive:
        return [sample for micro_batches in ranks for ids in micro_batches for sample in ids]
    return [sample for micro_batches in zip(*ranks, strict=True) for ids in micro_batches for sample in ids]
