"""Data parallelism whose sums do not depend on the number of ranks: the same bits from 1, 2, 4, ... of them.

Floating-point addition is not associative, so the order is fixed. The micro-batches of a global batch are cut into
equal runs of consecutive ones; a run is summed from first to last, then neighbours are added in pairs, pairs of pairs,
and so on: a binary tree over the runs, whose number is a power of two. With dp ranks, a power of two as well, each has
the micro-batches below one node of the tree, at depth log2(dp). It sums them while they come, like a binary counter:
one pending sum per level. The levels above are summed over the ranks, every rank a slice.

Cost against megatron-core's reduction: log2(runs / dp) more copies of the gradients; per run one copy and up to that
many additions in memory; the bytes of an all-reduce, also with the distributed optimizer, where a reduce-scatter would
be half of them; and nothing runs beside the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.transformer import TransformerConfig

PIECE = 2**24
"""Elements that are exchanged at a time: the extra memory of a sum over ranks is as much again."""


class OrderedDataParallel(DistributedDataParallel):
    """megatron-core's data parallelism with sums in a fixed order; after a step every rank has the whole gradients.

    Args:
        config: of the model.
        ddp_config: without any overlap.
        module: a model chunk.
        disable_bucketing: as megatron-core's; without overlap there is one bucket anyway.
    """

    def __init__(
        self,
        config: TransformerConfig,
        ddp_config: DistributedDataParallelConfig,
        module: torch.nn.Module,
        disable_bucketing: bool = False,
    ) -> None:
        super().__init__(config, ddp_config, module, disable_bucketing)
        self._sums = {parameter: RunningSum(parameter.main_grad) for parameter in self.params_with_grad}
        self._micro_batches = self._run = 0

    def expect(self, micro_batches: int, run: int) -> None:
        """Begin a global batch. Rank-local.

        Args:
            micro_batches: this rank's, a power of two times `run`.
            run: consecutive micro-batches that are summed one after the other; the same on every rank.
        """
        self._micro_batches, self._run = micro_batches, run
        for pending in self._sums.values():
            pending.done = 0

    def _make_backward_post_hook(self, param: torch.nn.Parameter) -> Callable[..., None]:
        """Return what autograd calls when the gradient of one micro-batch is there; megatron-core asks for it."""
        add_to_main_grad = super()._make_backward_post_hook(param)

        def hook(*unused: object) -> None:
            add_to_main_grad(*unused)
            self._sums[param].micro_batch_is_added(self._micro_batches, self._run)

        return hook

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """Sum the gradients over the data-parallel ranks; collective over them.

        Raises:
            RuntimeError: a parameter did not get one gradient from each micro-batch, so the order was another one.
        """
        for pending in self._sums.values():
            if pending.done != self._micro_batches:
                raise RuntimeError(f"{pending.done} gradients of a parameter from {self._micro_batches} micro-batches")
        for buffer in self.buffers:
            sum_over_ranks(buffer.grad_data, self.dp_cp_group)


class RunningSum:
    """The gradient of one parameter over the micro-batches of one rank, summed as a binary counter counts.

    Args:
        main_grad: where micro-batches are added; afterwards holds the whole sum. Any shape, any dtype.
    """

    def __init__(self, main_grad: torch.Tensor) -> None:
        self.done = 0
        self._main_grad = main_grad
        self._pending: list[torch.Tensor] = []
        """One sum per level, of 2^level runs; kept from step to step."""

    def micro_batch_is_added(self, micro_batches: int, run: int) -> None:
        """Count one more micro-batch in `main_grad`; at the end of a run add up what has become a pair."""
        self.done += 1
        runs, rest = divmod(self.done, run)
        if rest:
            return
        level = 0
        while runs % 2 == 0:
            self._main_grad.add_(self._pending[level])
            runs, level = runs // 2, level + 1
        if self.done < micro_batches:
            if level == len(self._pending):
                self._pending.append(torch.empty_like(self._main_grad))
            self._pending[level].copy_(self._main_grad)
            self._main_grad.zero_()


def sum_over_ranks(flat: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Replace `flat` by its sum over the ranks of `group`, added in pairs of neighbours. Collective over `group`.

    Every rank gets a slice from all, adds, and gives the sum to all: the bytes of a ring's all-reduce.

    Args:
        flat: `[n]`, contiguous.
        group: a power of two of ranks.
    """
    ranks = group.size()
    if ranks == 1:
        return
    for piece in flat.split(PIECE):
        size = -(-piece.numel() // ranks)  # of a slice, rounded up
        whole = piece if piece.numel() == size * ranks else piece.new_zeros(size * ranks)
        if whole is not piece:
            whole[: piece.numel()] = piece
        received = torch.empty_like(whole)
        dist.all_to_all_single(received, whole, group=group)
        dist.all_gather_into_tensor(whole, sum_in_pairs(received.view(ranks, size)), group=group)
        if whole is not piece:
            piece.copy_(whole[: piece.numel()])


def sum_in_pairs(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of `rows` `[r, n]`, r a power of two, `[n]`: (0 + 1) + (2 + 3) and so on. Overwrites `rows`."""
    while len(rows) > 1:
        rows = rows[::2].add_(rows[1::2])
    return rows[0]
