"""Which samples of a global batch a rank computes, and in which micro-batch: pure functions."""

from __future__ import annotations

from megatron_ext.native_numpy import Int64Array


def micro_batch_ids(
    ids_of_global_batch: Int64Array, micro_batch_size: int, dp_rank: int, dp_size: int, consecutive: bool = False
) -> list[Int64Array]:
    """The sample ids of each micro-batch of one rank, int64 `[b]` each, in order.

    Sample j of the global batch goes to micro-batch j // (b dp), and there to rank (j // b) mod dp, as megatron's
    sequential sampler does; together the ranks compute every sample once.

    Args:
        ids_of_global_batch: int64 `[B]`, B a multiple of b dp.
        micro_batch_size: b.
        dp_rank: this data-parallel rank.
        dp_size: dp.
        consecutive: rank r takes the r-th of dp equal parts of the global batch instead, its micro-batches in order.
    """
    step = micro_batch_size * dp_size
    if len(ids_of_global_batch) % step:
        raise ValueError(f"{len(ids_of_global_batch)} samples do not divide into {dp_size} ranks x {micro_batch_size}")
    micro_batches = len(ids_of_global_batch) // step
    first, stride = (micro_batches * dp_rank, 1) if consecutive else (dp_rank, dp_size)
    begins = [micro_batch_size * (first + stride * index) for index in range(micro_batches)]
    return [ids_of_global_batch[begin : begin + micro_batch_size] for begin in begins]
