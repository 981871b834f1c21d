"""The sharded cross entropy is torch's over the true vocabulary, in value and gradient, however it is cut."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from megatron_ext.model import cross_entropy, row_chunks
from megatron_ext.model.cross_entropy import cross_entropy_with_max_z, vocab_parallel_cross_entropy

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
SHAPES = [(5, 3, 7, 7), (4, 2, 16, 11), (1, 1, 2, 1), (3, 1, 129, 100), (17, 2, 64, 33)]


class Group:
    """As much of a process group as the code asks for."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = (lambda: rank), (lambda: size)


def case(s: int, b: int, columns: int, vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with large padded columns, labels, and a gradient of the losses that differs per token."""
    generator = torch.Generator().manual_seed(s * columns)
    logits = torch.randn(s, b, columns, generator=generator) * 5
    logits[..., vocab_size:] = 50.0
    labels = torch.randint(0, vocab_size, (s, b), generator=generator)
    return logits.to(dtype), labels, torch.rand(s, b, generator=generator)


def reference(logits: Tensor, labels: Tensor, vocab_size: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """torch's cross entropy in fp64 over the true columns; the gradient of the padded ones is zero."""
    exact = logits.double().requires_grad_()
    losses = functional.cross_entropy(exact[..., :vocab_size].flatten(0, 1), labels.flatten(), reduction="none")
    losses = losses.reshape(labels.shape)
    losses.backward(upstream.double())
    return losses.detach(), exact.grad


def reference_with_max_z(
    logits: Tensor, labels: Tensor, vocab_size: int, upstream: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """z of every token, and the gradient of cross entropy + weight * z^2, both in fp64."""
    exact = logits.double().requires_grad_()
    z = exact[..., :vocab_size].max(-1).values
    (weight * z.square() * upstream.double()).sum().backward()
    return z.detach(), exact.grad + reference(logits, labels, vocab_size, upstream)[1]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradient_are_those_of_torch(shape: tuple[int, int, int, int], dtype: torch.dtype):
    logits, labels, upstream = case(*shape, dtype)
    expected_losses, expected_gradient = reference(logits, labels, shape[3], upstream)
    given = logits.clone().requires_grad_()
    losses = vocab_parallel_cross_entropy(given, labels, shape[3], Group())
    losses.backward(upstream)
    assert losses.dtype == torch.float32 and losses.shape == labels.shape
    assert_near(losses, expected_losses, 1e-5)  # fp32 inside, whatever the logits are
    assert given.grad.dtype == dtype
    assert_near(given.grad, expected_gradient, TOLERANCE[dtype])
    assert given.grad[..., shape[3] :].count_nonzero() == 0


def test_padded_columns_change_no_bit():
    logits, labels, upstream = case(6, 2, 32, 20, torch.float32)
    results = []
    for filling in (0.0, 1e4, float("inf"), float("nan")):
        given = logits.clone()
        given[..., 20:] = filling
        given.requires_grad_()
        losses = vocab_parallel_cross_entropy(given, labels, 20, Group())
        losses.backward(upstream)
        results.append((losses, given.grad))
    for losses, gradient in results[1:]:
        assert losses.equal(results[0][0]) and gradient.equal(results[0][1])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_callers_tensors_are_left_alone(dtype: torch.dtype):
    logits, labels, upstream = case(6, 2, 32, 20, dtype)
    given, labels_before, upstream_before = logits.clone().requires_grad_(), labels.clone(), upstream.clone()
    losses = vocab_parallel_cross_entropy(given, labels, 20, Group())
    losses_before = losses.detach().clone()
    losses.backward(upstream)
    assert given.detach().equal(logits) and labels.equal(labels_before) and upstream.equal(upstream_before)
    assert losses.detach().equal(losses_before)


@pytest.mark.parametrize("elements", [1, 20, 21, 59, 60, 1 << 20])
def test_the_size_of_a_chunk_changes_no_bit(elements: int, monkeypatch: pytest.MonkeyPatch):
    logits, labels, upstream = case(7, 3, 24, 20, torch.bfloat16)

    def run() -> tuple[Tensor, Tensor]:
        given = logits.clone().requires_grad_()
        losses = vocab_parallel_cross_entropy(given, labels, 20, Group())
        losses.backward(upstream)
        return losses.detach(), given.grad

    whole = run()
    monkeypatch.setattr(row_chunks, "CHUNK_ELEMENTS", elements)
    assert all(a.equal(b) for a, b in zip(run(), whole, strict=True))


def test_extreme_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[-3e38, 3e38, 0.0]]], requires_grad=True)
    losses = vocab_parallel_cross_entropy(logits, torch.tensor([[1], [1]]), 3, Group())
    losses.sum().backward()
    assert losses.flatten().tolist() == [2e4, 0.0]
    assert logits.grad.flatten().tolist() == [1.0, -1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("transposed", ["logits", "labels", "gradient"])
def test_the_memory_layout_of_the_inputs_does_not_matter(transposed: str):
    logits, labels, upstream = case(6, 4, 12, 9, torch.float32)
    expected = reference(logits, labels, 9, upstream)
    if transposed == "logits":
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    elif transposed == "labels":
        labels = labels.t().contiguous().t()
    else:
        upstream = upstream.t().contiguous().t()
    given = logits.requires_grad_()
    losses = vocab_parallel_cross_entropy(given, labels, 9, Group())
    losses.backward(upstream)
    assert_near(losses.detach(), expected[0], 1e-5)
    assert_near(given.grad, expected[1], 1e-6)


class Lockstep:
    """All-reduce between threads that stand for ranks: each waits until all have brought their tensor."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=30)
        self.tensors: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor, op: dist.ReduceOp.RedOpType, group: Group) -> None:
        self.tensors[group.rank()] = tensor.clone()
        self.barrier.wait()
        stacked = torch.stack([self.tensors[rank] for rank in range(group.size())])
        tensor.copy_(stacked.amax(0) if op == dist.ReduceOp.MAX else stacked.sum(0))
        self.barrier.wait()


def on_ranks(work: Callable[[int], tuple[Tensor, Tensor]], ranks: int) -> list[tuple[Tensor, Tensor]]:
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(work, range(ranks)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tp", "vocab_size"), [(2, 24), (2, 19), (2, 12), (2, 5), (4, 13), (3, 1)])
def test_shards_give_the_loss_and_gradient_of_the_whole(
    tp: int, vocab_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Also where a label is on another rank, and where a rank holds nothing but padding."""
    monkeypatch.setattr(cross_entropy, "_all_reduce", Lockstep(tp))
    logits, labels, upstream = case(5, 2, 24, vocab_size, dtype)
    expected_losses, expected_gradient = reference(logits, labels, vocab_size, upstream)

    def rank_work(rank: int) -> tuple[Tensor, Tensor]:
        given = logits.chunk(tp, dim=-1)[rank].clone().requires_grad_()
        losses = vocab_parallel_cross_entropy(given, labels, vocab_size, Group(rank, tp))
        losses.backward(upstream)
        return losses.detach(), given.grad

    results = on_ranks(rank_work, tp)
    for losses, _ in results:
        assert losses.equal(results[0][0])
        assert_near(losses, expected_losses, 1e-5)
    assert_near(torch.cat([gradient for _, gradient in results], -1), expected_gradient, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_max_z_is_in_the_gradient_and_not_in_the_loss(shape: tuple[int, int, int, int], dtype: torch.dtype):
    """Also beside padded columns that are larger than every logit."""
    logits, labels, upstream = case(*shape, dtype)
    expected_z, expected_gradient = reference_with_max_z(logits, labels, shape[3], upstream, 0.02)
    given = logits.clone().requires_grad_()
    losses, z = cross_entropy_with_max_z(given, labels, shape[3], Group(), 0.02)
    losses.backward(upstream)
    assert losses.equal(vocab_parallel_cross_entropy(logits, labels, shape[3], Group())), "no bit of the loss changes"
    assert z.dtype == torch.float32 and not z.requires_grad
    assert z.double().equal(expected_z), "a maximum is exact"
    assert given.grad.dtype == dtype
    assert_near(given.grad, expected_gradient, TOLERANCE[dtype])
    assert given.grad[..., shape[3] :].count_nonzero() == 0


def test_a_masked_token_has_neither_part_of_the_gradient():
    logits, labels, upstream = case(5, 2, 16, 11, torch.float32)
    upstream[::2] = 0
    given = logits.requires_grad_()
    cross_entropy_with_max_z(given, labels, 11, Group(), 3.0)[0].backward(upstream)
    assert given.grad[::2].count_nonzero() == 0
    assert_near(given.grad, reference_with_max_z(logits.detach(), labels, 11, upstream, 3.0)[1], 1e-5)


@pytest.mark.parametrize("largest", [2.0, 0.0, -3.0])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_of_equal_logits_the_lowest_token_has_the_gradient(tp: int, largest: float, monkeypatch: pytest.MonkeyPatch):
    """Whatever ranks the equals are on; rows: equals on one rank, over two, everywhere, and on the last rank alone."""
    monkeypatch.setattr(cross_entropy, "_all_reduce", Lockstep(tp))
    equals = [[1, 2], [3, 4], list(range(8)), [6, 7]]
    logits = torch.full((4, 1, 8), largest - 1)
    for row, places in enumerate(equals):
        logits[row, 0, places] = largest
    labels = torch.full((4, 1), 5)

    def rank_work(rank: int) -> tuple[Tensor, Tensor]:
        with_z, without = (logits.chunk(tp, dim=-1)[rank].clone().requires_grad_() for _ in range(2))
        losses, z = cross_entropy_with_max_z(with_z, labels, 8, Group(rank, tp), 0.5)
        losses.sum().backward()
        vocab_parallel_cross_entropy(without, labels, 8, Group(rank, tp)).sum().backward()
        return z, with_z.grad - without.grad

    results = on_ranks(rank_work, tp)
    assert all(z.equal(torch.full((4, 1), largest)) for z, _ in results)
    expected = torch.zeros(4, 8)
    expected[range(4), [places[0] for places in equals]] = largest
    torch.testing.assert_close(torch.cat([part for _, part in results], -1)[:, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tp", "vocab_size"), [(2, 24), (2, 19), (2, 12), (4, 13), (3, 1)])
def test_shards_give_z_and_gradient_of_the_whole(
    tp: int, vocab_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Also where a rank holds nothing but padding."""
    group_calls = []
    reduce = Lockstep(tp)

    def counted(tensor: Tensor, op: dist.ReduceOp.RedOpType, group: Group) -> None:
        group_calls.append(group.rank())
        reduce(tensor, op, group)

    monkeypatch.setattr(cross_entropy, "_all_reduce", counted)
    logits, labels, upstream = case(5, 2, 24, vocab_size, dtype)
    expected_z, expected_gradient = reference_with_max_z(logits, labels, vocab_size, upstream, 0.02)

    def rank_work(rank: int) -> tuple[Tensor, Tensor]:
        given = logits.chunk(tp, dim=-1)[rank].clone().requires_grad_()
        losses, z = cross_entropy_with_max_z(given, labels, vocab_size, Group(rank, tp), 0.02)
        losses.backward(upstream)
        return z, given.grad

    results = on_ranks(rank_work, tp)
    assert len(group_calls) == 2 * tp, "as many reductions as the cross entropy alone"
    assert all(z.double().equal(expected_z) for z, _ in results)
    assert_near(torch.cat([gradient for _, gradient in results], -1), expected_gradient, TOLERANCE[dtype])


def test_numbers_and_their_bits_have_the_same_order():
    numbers = [float("-inf"), -3e38, -1.5, -1.0, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 1.0, 1.5, 3e38, float("inf")]
    bits = torch.tensor(numbers).view(torch.int32)
    ordered = cross_entropy._in_order(bits)
    assert (ordered[1:] > ordered[:-1]).all()
    assert cross_entropy._in_order(ordered).equal(bits)


def test_a_logit_that_is_no_number_shows_in_the_loss():
    for bad in (float("nan"), -float("nan")):
        logits = torch.randn(2, 1, 6, requires_grad=True)
        with torch.no_grad():
            logits[0, 0, 2] = bad
        losses, _ = cross_entropy_with_max_z(logits, torch.zeros(2, 1, dtype=torch.int64), 6, Group(), 0.1)
        assert losses.isnan().flatten().tolist() == [True, False]
