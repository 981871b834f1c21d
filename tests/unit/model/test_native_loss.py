"""The CPU kernels of the losses against fp64 and against their twins in PyTorch's operations, bf16 throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from megatron_ext.model import cross_entropy, linear_cross_entropy, native_loss
from megatron_ext.model.cross_entropy import RowStatistics, Scoring, row_statistics, write_logit_gradient
from megatron_ext.platform.cpu_kernels import CPU_KERNELS
from megatron_ext.platform.kernels import NATIVE, TORCH
from tests.unit.model.test_cross_entropy import Group, Lockstep, on_ranks
from tests.unit.model.ulps import assert_rounded, threads

pytestmark = pytest.mark.skipif(CPU_KERNELS is None, reason="the kernels are not built, or no AVX-512 with bf16")

COLUMNS = [1, 15, 16, 17, 64, 100, 129, 32001]


def case(columns: int, rows: int = 5, stride: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of rows that lie `stride` apart, between numbers that must not be read; labels; weights with a zero."""
    generator = torch.Generator().manual_seed(columns)
    whole = torch.full((rows, stride or columns), float("nan"), dtype=torch.bfloat16)
    whole[:, :columns] = 5 * torch.randn(rows, columns, generator=generator)
    labels = torch.randint(0, columns, (rows,), generator=generator)
    weight = torch.rand(rows, 1, generator=generator)
    weight[-1] = 0
    return whole[:, :columns], labels, weight


def exact(scores: Tensor, labels: Tensor, weight: Tensor, max_z: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, largest logits and the gradient of sum(weight * (loss + max_z * z^2)), fp64."""
    given = scores.double().requires_grad_()
    losses = torch.logsumexp(given, -1) - given.gather(1, labels[:, None])[:, 0]
    z = given.max(-1).values
    ((losses + max_z * z.square()) * weight[:, 0].double()).sum().backward()
    return losses.detach(), z.detach(), given.grad


@contextmanager
def no_twin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's operations do nothing but fail."""

    def refused(*_: object) -> None:
        raise AssertionError("the twin computes")

    with monkeypatch.context() as patch:
        patch.setattr(cross_entropy, "fp32_chunks", refused)
        patch.setattr(linear_cross_entropy, "fp32_chunks", refused)
        yield


@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stride", [0, 1, 32])
@pytest.mark.parametrize("columns", COLUMNS)
def test_losses_and_gradients_are_those_of_fp64(
    columns: int, stride: int, in_place: bool, max_z: float, monkeypatch: pytest.MonkeyPatch
):
    scores, labels, weight = case(columns, stride=columns + stride)
    expected_losses, expected_z, expected = exact(scores, labels, weight, max_z)
    with no_twin(monkeypatch):
        losses, z, statistics = row_statistics(scores, labels, 0, Scoring(Group(), max_z, kernels=NATIVE))
        out = scores if in_place else torch.full_like(scores, float("nan"))
        write_logit_gradient(out, scores, statistics, weight, kernels=NATIVE)
    torch.testing.assert_close(losses.double(), expected_losses, rtol=2e-6, atol=2e-6)
    assert z.double().equal(expected_z), "a maximum is exact"
    # beside the label, p - 1 has lost what p has before it: fp32's rounding of 1 (and of the largest logits' slope)
    assert_rounded(out, expected, 3e-7)
    assert in_place or not scores.isnan().any()
    assert not stride or scores._base[:, columns:].isnan().all(), "what lies between rows is left alone"


@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize("columns", COLUMNS)
def test_they_agree_with_their_twins(columns: int, max_z: float):
    scores, labels, weight = case(columns)
    outs = []
    for kernels in (TORCH, NATIVE):
        losses, z, statistics = row_statistics(scores, labels, 0, Scoring(Group(), max_z, kernels))
        out = torch.empty_like(scores)
        write_logit_gradient(out, scores, statistics, weight, kernels)
        outs.append((losses, z, statistics, out))
    (losses, z, statistics, out), (own_losses, own_z, own_statistics, own_out) = outs
    torch.testing.assert_close(own_losses, losses, rtol=2e-6, atol=2e-6)
    assert own_z.equal(z) and own_statistics.label.equal(statistics.label)
    assert max_z == 0 or (own_statistics.place.equal(statistics.place) and own_statistics.slope.equal(statistics.slope))
    # each has rounded by itself, so that a number near the middle of two may differ by a step
    torch.testing.assert_close(own_out, out, rtol=2.0**-7, atol=3e-7)


@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize(("tp", "vocab_size"), [(2, 48), (2, 37), (2, 24), (4, 25), (3, 1)])
def test_ranks_share_a_vocabulary(tp: int, vocab_size: int, max_z: float, monkeypatch: pytest.MonkeyPatch):
    """Labels of other ranks, ranks that hold nothing but padding; as many reductions as the twin makes."""
    reduce, calls = Lockstep(tp), []

    def counted(*args: object) -> None:
        calls.append(args[1])
        reduce(*args)

    monkeypatch.setattr(cross_entropy, "_all_reduce", counted)
    scores, labels, weight = case(vocab_size)
    width = -(-48 // tp)
    expected_losses, expected_z, expected = exact(scores, labels, weight, max_z)

    def rank_work(rank: int) -> tuple[Tensor, Tensor, Tensor]:
        mine = scores[:, rank * width : (rank + 1) * width].clone()
        found = row_statistics(mine, labels, rank * width, Scoring(Group(rank, tp), max_z, kernels=NATIVE))
        write_logit_gradient(mine, mine, found[2], weight, kernels=NATIVE)
        return found[0], found[1], mine

    results = on_ranks(rank_work, tp)
    assert len(calls) == 2 * tp
    for losses, z, _ in results:
        assert losses.equal(results[0][0])
        torch.testing.assert_close(losses.double(), expected_losses, rtol=2e-6, atol=2e-6)
        assert z.double().equal(expected_z)
    assert_rounded(torch.cat([part for *_, part in results], -1), expected, 3e-7)


@pytest.mark.parametrize("place", [0, 5, 16, 63, 64, 99])
def test_of_equal_logits_the_first_is_the_largest(place: int):
    scores = torch.full((2, 100), -2.0, dtype=torch.bfloat16)
    scores[:, place:] = -1.5
    for labels in (torch.tensor([place, 3]), torch.tensor([99, place])):
        expected = exact(scores, labels, torch.ones(2, 1), 0.0)[2]
        expected[:, place] += 2 * 0.5 * -1.5
        statistics = row_statistics(scores, labels, 0, Scoring(Group(), 0.5, kernels=NATIVE))[2]
        out = torch.empty_like(scores)
        write_logit_gradient(out, scores, statistics, torch.ones(2, 1), kernels=NATIVE)
        assert statistics.place.flatten().tolist() == [place, place]
        assert_rounded(out, expected, 3e-7)


def test_extreme_logits_and_what_is_no_number():
    inf = float("inf")
    rows = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0], [-inf, 1.0, 1.0]]).bfloat16()
    losses, _, statistics = row_statistics(rows, torch.tensor([1, 1, 1]), 0, Scoring(Group(), kernels=NATIVE))
    assert losses.tolist() == [float(rows[0, 0] - rows[0, 1]), 0.0, pytest.approx(0.6931472)]
    out = torch.empty_like(rows)
    write_logit_gradient(out, rows, statistics, torch.ones(3, 1), kernels=NATIVE)
    assert out.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, -0.5, 0.5]]
    for bad in (torch.tensor([[1.0, inf]]), torch.tensor([[float("nan"), 1.0]]), torch.full((1, 2), -inf)):
        for max_z in (0.0, 0.1):
            losses, *_ = row_statistics(bad.bfloat16(), torch.tensor([1]), 0, Scoring(Group(), max_z, kernels=NATIVE))
            assert losses.isnan().all()


@pytest.mark.parametrize("columns", [100, 32001])
def test_the_number_of_threads_changes_no_bit(columns: int):
    scores, labels, weight = case(columns, rows=37)

    def run() -> list[Tensor]:
        losses, _, statistics = row_statistics(scores, labels, 0, Scoring(Group(), 0.02, kernels=NATIVE))
        out = torch.empty_like(scores)
        write_logit_gradient(out, scores, statistics, weight, kernels=NATIVE)
        total = torch.ones(scores.shape)
        native_loss.add(total, out)
        native_loss.scaled(out, total, 0.3)
        return [losses, out, total]

    assert_same_bits(run)


def assert_same_bits(run: Callable[[], list[Tensor]]) -> None:
    with threads(1):
        alone = run()
    for number in (2, 3):
        with threads(number):
            assert all(one.equal(other) for one, other in zip(run(), alone, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (3, 4096), (41, 101), (1100, 2001)], ids=str)
def test_sums_and_what_is_scaled_in_its_own_memory_are_rounded_once(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    generator = torch.Generator().manual_seed(1)
    total, share = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator).bfloat16()
    expected = total + share.float()
    with no_twin(monkeypatch):
        linear_cross_entropy._add(total, share, first=False, kernels=NATIVE)
    assert total.equal(expected)
    for kernels in (NATIVE, TORCH):
        memory = total.clone()
        out = linear_cross_entropy._scaled(memory, torch.tensor(0.3), torch.bfloat16, kernels)
        assert out.equal((expected * torch.tensor(0.3)).bfloat16()) and out.data_ptr() == memory.data_ptr()


@pytest.mark.parametrize("what", ["fp32", "columns apart"])
def test_what_the_kernels_do_not_take_goes_to_the_twin(what: str, monkeypatch: pytest.MonkeyPatch):
    scores, labels, weight = case(17)
    given = scores.float() if what == "fp32" else scores.t().contiguous().t()
    monkeypatch.setattr(native_loss, "CPU_KERNELS", None)
    losses, _, statistics = row_statistics(given, labels, 0, Scoring(Group(), kernels=NATIVE))
    out = torch.empty_like(given)
    write_logit_gradient(out, given, statistics, weight, kernels=NATIVE)
    expected = exact(scores, labels, weight, 0.0)
    torch.testing.assert_close(losses.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), expected[2], rtol=8e-3, atol=1e-6)


def test_they_are_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    scores, labels, weight = case(17)
    monkeypatch.setattr(native_loss, "CPU_KERNELS", None)
    statistics = row_statistics(scores, labels, 0, Scoring(Group()))[2]
    assert isinstance(statistics, RowStatistics)
    write_logit_gradient(scores, scores, statistics, weight)
    linear_cross_entropy._add(torch.ones(5, 17), scores, first=False, kernels=TORCH)
    linear_cross_entropy._scaled(torch.ones(5, 17), torch.tensor(0.3), torch.bfloat16, kernels=TORCH)
