"""Sums of gradients have one order, whatever the number of ranks that share the micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.parallel import ordered
from megatron_ext.parallel.ordered import OrderedDataParallel, RunningSum, sum_in_pairs, sum_over_ranks
from megatron_ext.parallel.world import World
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.readers import open_readers
from megatron_ext.training.step import clear_gradients, train_step
from tests.unit.tiny import TokenView, tiny_components, tiny_run


def uneven(count: int, seed: int = 0) -> list[torch.Tensor]:
    """Gradients of very different sizes, so that another order gives other bits."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.randint(-3, 4, (count, 64), generator=generator)
    return list(torch.randn(count, 64, generator=generator) * sizes)


def tree(gradients: list[torch.Tensor], run: int) -> torch.Tensor:
    """The order as the documentation says it, halves first."""
    if len(gradients) > run:
        half = len(gradients) // 2
        return tree(gradients[:half], run) + tree(gradients[half:], run)
    total = torch.zeros_like(gradients[0])
    for gradient in gradients:
        total = total + gradient
    return total


def summed(gradients: list[torch.Tensor], run: int) -> tuple[torch.Tensor, int]:
    """What a rank makes of its micro-batches, twice, and how many sums it keeps meanwhile."""
    main_grad = torch.zeros_like(gradients[0])
    pending = RunningSum(main_grad)
    for _ in range(2):
        main_grad.zero_()
        pending.done = 0
        for gradient in gradients:
            main_grad += gradient
            pending.micro_batch_is_added(len(gradients), run)
    return main_grad, len(pending._pending)


@given(halvings=st.integers(0, 5), run=st.integers(1, 3), below=st.integers(0, 5), seed=st.integers(0, 9))
def test_any_number_of_ranks_gives_the_same_bits(halvings: int, run: int, below: int, seed: int):
    gradients, ranks = uneven(2**halvings * run, seed), 2 ** min(below, halvings)
    share = len(gradients) // ranks
    of_rank = [summed(gradients[rank * share : (rank + 1) * share], run) for rank in range(ranks)]
    assert sum_in_pairs(torch.stack([total for total, _ in of_rank])).equal(tree(gradients, run))
    # the memory that the help tells of: log2(parts / dp) copies
    assert {2**copies for _, copies in of_rank} == {2**halvings // ranks}


def test_the_order_matters_for_these_numbers():
    gradients = uneven(8)
    assert not tree(gradients, 1).equal(tree(gradients, 8))


def test_one_rank_has_nothing_to_exchange(world: World):
    flat = torch.arange(5.0)
    sum_over_ranks(flat, torch.distributed.group.WORLD)
    assert flat.equal(torch.arange(5.0))


@pytest.mark.parametrize("size", [1, 6, 8, 13])
def test_ranks_exchange_slices_of_pieces(size: int, monkeypatch: pytest.MonkeyPatch):
    """Four ranks on one process: what a rank sends comes from all, as if they held the same."""
    flat = torch.arange(float(size)) + 1
    monkeypatch.setattr(ordered, "PIECE", 8)
    sent: list[torch.Tensor] = []

    def all_to_all(received: torch.Tensor, whole: torch.Tensor, group: object) -> None:
        sent.append(whole.clone())
        received.view(4, -1).copy_(whole.view(4, -1)[1].expand(4, -1))  # this is rank 1

    def all_gather(whole: torch.Tensor, mine: torch.Tensor, group: object) -> None:
        assert mine.equal(4 * sent[-1].view(4, -1)[1])
        whole.copy_(4 * sent[-1])

    monkeypatch.setattr(ordered.dist, "all_to_all_single", all_to_all)
    monkeypatch.setattr(ordered.dist, "all_gather_into_tensor", all_gather)
    sum_over_ranks(flat, type("Group", (), {"size": lambda self: 4})())
    assert flat.equal(4 * (torch.arange(float(size)) + 1))
    assert [len(piece) for piece in sent] == {1: [4], 6: [8], 8: [8], 13: [8, 8]}[size]


def test_a_step_sums_the_gradients_of_its_micro_batches_in_that_order(world: World):
    """Against gradients of single micro-batches, taken one after the other without any wrapper's sum."""
    run = tiny_run(deterministic_data_parallel=True, micro_batch_size=1, global_batch_size=6, clip_grad=0.0)
    single = tiny_components(tiny_run(micro_batch_size=1, global_batch_size=1, clip_grad=0.0, lr=1e-30), world)
    gradients: list[list[torch.Tensor]] = []  # the rate is too small to move a weight
    with open_readers(single, TokenView(), 0, lambda _: 1) as readers:
        for _ in range(6):
            train_step(single, TrainState(), readers)
            # whole numbers of tokens were divided out: 16 of each micro-batch, a power of two
            gradients.append([16 * parameter.main_grad.clone() for parameter in single.models[0].parameters()])
    parts = tiny_components(run, world)
    with open_readers(parts, TokenView(), 0, run.global_batch_size_at) as readers:
        train_step(parts, TrainState(), readers)
    scale = 1.0 / torch.tensor(96, dtype=torch.int)
    for number, parameter in enumerate(parts.models[0].parameters()):
        expected = tree([of_micro_batch[number] for of_micro_batch in gradients], run=3) * scale
        assert parameter.main_grad.equal(expected)


def test_a_gradient_that_is_missing_is_an_error(world: World):
    parts = tiny_components(tiny_run(deterministic_data_parallel=True), world)
    [chunk] = parts.chunks
    assert isinstance(chunk, OrderedDataParallel)
    clear_gradients(parts, TrainState())
    with pytest.raises(RuntimeError, match="0 gradients of a parameter from 2 micro-batches"):
        chunk.finish_grad_sync()
