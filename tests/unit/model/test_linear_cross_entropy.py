"""Output product and cross entropy in one are the two after each other, in value and gradient, however they are cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_ext.model import cross_entropy
from megatron_ext.model import linear_cross_entropy as fused
from megatron_ext.model.cross_entropy import Scoring, cross_entropy_with_max_z, vocab_parallel_cross_entropy
from megatron_ext.model.linear_cross_entropy import Targets, common_factor, linear_cross_entropy
from tests.unit.model.test_cross_entropy import Group, Lockstep, on_ranks

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SHAPES = [(5, 3, 4, 7, 7), (4, 2, 3, 16, 11), (1, 1, 1, 2, 1), (17, 2, 24, 129, 100)]
"""s, b, h, rows of the weight, true tokens."""

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(s: int, b: int, h: int, columns: int, vocab_size: int, dtype: torch.dtype = torch.float32) -> Case:
    """Hidden states, weight, bias, labels, and a mask of whole and broken numbers with zeros."""
    generator = torch.Generator().manual_seed(s * columns)
    hidden, weight, bias = (torch.randn(shape, generator=generator) for shape in ((s, b, h), (columns, h), (columns,)))
    weight[vocab_size:] = bias[vocab_size:] = 50.0
    labels = torch.randint(0, vocab_size, (s, b), generator=generator)
    mask = torch.randint(0, 4, (s, b), generator=generator) / 2
    mask[0, 0] = 1.0
    return *(tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)), labels, mask


def twin(given: Case, vocab_size: int, with_bias: bool, max_z: float, factor: float) -> list[Tensor]:
    """Losses, z and gradients from logits that exist whole, in the same type."""
    hidden, weight, bias = (tensor.detach().clone().requires_grad_() for tensor in given[:3])
    labels, mask = given[3:]
    logits = torch.nn.functional.linear(hidden, weight, bias if with_bias else None)
    if max_z:
        losses, z = cross_entropy_with_max_z(logits, labels, vocab_size, Group(), max_z)
    else:
        losses = vocab_parallel_cross_entropy(logits, labels, vocab_size, Group())
        z = logits[..., :vocab_size].max(-1).values
    (factor * losses * mask).sum().backward()
    wanted = (hidden, weight, bias) if with_bias else (hidden, weight)
    return [losses.detach(), z.detach(), *(tensor.grad for tensor in wanted)]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        bound = tolerance * max(1.0, other.abs().max().item())
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=bound)


@pytest.mark.parametrize("factor", [1.0, 0.3, 1024.0])
@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_whole_logits(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    with_bias: bool,
    max_z: float,
    factor: float,
    monkeypatch: pytest.MonkeyPatch,
):
    """A few tokens at a time, with a last chunk that is smaller."""
    monkeypatch.setattr(fused, "CHUNK_LOGITS", 4 * shape[3])
    monkeypatch.setattr(fused, "CHUNK_TOKENS", 1)
    given, vocab_size = case(*shape, dtype), shape[4]
    hidden, weight, bias, labels, mask = given
    losses, z = linear_cross_entropy(
        hidden, weight, bias if with_bias else None, Targets(labels, mask, vocab_size, Scoring(Group(), max_z))
    )
    (factor * losses * mask).sum().backward()
    wanted = (hidden, weight, bias) if with_bias else (hidden, weight)
    assert losses.dtype == z.dtype == torch.float32 and not z.requires_grad
    assert all(tensor.grad.dtype == dtype for tensor in wanted)
    assert weight.grad[vocab_size:].count_nonzero() == 0
    found = [losses.detach(), z, *(tensor.grad for tensor in wanted)]
    assert_near(found, twin(given, vocab_size, with_bias, max_z, factor), TOLERANCE[dtype])


@pytest.mark.parametrize("max_z", [0.0, 0.02])
@pytest.mark.parametrize(("tp", "vocab_size"), [(2, 24), (2, 19), (2, 12), (4, 13), (3, 1)])
def test_shards_give_what_the_whole_gives(tp: int, vocab_size: int, max_z: float, monkeypatch: pytest.MonkeyPatch):
    """Also where a rank holds nothing but padding: the chunks of all ranks are the same ones."""
    given = case(5, 2, 6, 24, vocab_size)
    expected = twin(given, vocab_size, True, max_z, 1.0)
    monkeypatch.setattr(cross_entropy, "_all_reduce", Lockstep(tp))
    monkeypatch.setattr(fused, "CHUNK_LOGITS", 50)
    monkeypatch.setattr(fused, "CHUNK_TOKENS", 1)
    hidden, weight, bias, labels, mask = given

    def rank_work(rank: int) -> list[Tensor]:
        mine = [t.detach().clone().requires_grad_() for t in (hidden, weight.chunk(tp)[rank], bias.chunk(tp)[rank])]
        losses, z = linear_cross_entropy(*mine, Targets(labels, mask, vocab_size, Scoring(Group(rank, tp), max_z)))
        (losses * mask).sum().backward()
        return [losses.detach(), z, *(tensor.grad for tensor in mine)]

    results = on_ranks(rank_work, tp)
    for losses, z, *_ in results:
        assert_near([losses, z], expected[:2], 1e-5)
    of_hidden = sum(result[2] for result in results)
    of_weight, of_bias = (torch.cat([result[place] for result in results]) for place in (3, 4))
    assert_near([of_hidden, of_weight, of_bias], expected[2:], 1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_gradients_that_nobody_wants_are_not_computed(frozen: str):
    hidden, weight, _, labels, mask = case(3, 2, 4, 7, 7)
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: shapes.append(tuple(tensor.shape)), lambda packed: packed
    ):
        losses, _ = linear_cross_entropy(hidden, weight, None, Targets(labels, mask, 7, Scoring(Group())))
    assert shapes == {"hidden": [(6,), (7, 4)], "weight": [(6,), (6, 4)], "both": []}[frozen]
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, None, Targets(labels, mask, 7, Scoring(Group())))[0].equal(losses)


@pytest.mark.parametrize(("tokens", "columns"), [(0, 7), (3, 0)])
def test_without_tokens_or_columns_the_gradients_are_zero(tokens: int, columns: int):
    """Whatever new memory holds."""
    hidden, weight = (torch.randn(shape, requires_grad=True) for shape in ((tokens, 1, 4), (columns, 4)))
    labels, mask = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        losses, _ = linear_cross_entropy(hidden, weight, None, Targets(labels, mask, columns, Scoring(Group())))
        (losses * mask).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert weight.grad.equal(torch.zeros(columns, 4)) and hidden.grad.equal(torch.zeros(tokens, 1, 4))


def test_losses_that_are_used_in_another_way_have_no_gradient():
    """A gradient that differs from the one the mask announced would be wrong without a sign."""
    hidden, weight, _, labels, mask = case(3, 2, 4, 7, 7)
    losses, _ = linear_cross_entropy(hidden, weight, None, Targets(labels, mask, 7, Scoring(Group())))
    losses.square().sum().backward()
    assert hidden.grad.isnan().all() and weight.grad.isnan().all()


def test_the_common_factor():
    mask = torch.tensor([1.0, 0.0, 0.5])
    assert common_factor(3 * mask, mask) == 3
    assert common_factor(torch.zeros(3), torch.zeros(3)) == 0
    assert common_factor(torch.ones(3), mask).isnan()
    assert common_factor(torch.tensor([1.0, 0.0, torch.nan]), mask).isnan()
    assert common_factor(torch.ones(3), torch.zeros(3)).isnan()


@pytest.mark.parametrize(("tokens", "vocab_size"), [(1 << 10, 1 << 16), (1 << 9, 1 << 18)])
def test_no_tensor_of_all_logits_is_made(tokens: int, vocab_size: int):
    """Whatever a step allocates is smaller than the logits in the compute type, and one chunk's are there at a time."""
    h, chunk = 8, max(fused.CHUNK_LOGITS, fused.CHUNK_TOKENS * vocab_size)
    hidden = torch.randn(tokens, 1, h, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocab_size, h, dtype=torch.bfloat16, requires_grad=True)
    labels, mask = torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1)
    with torch.profiler.profile(profile_memory=True) as profile:
        (
            linear_cross_entropy(hidden, weight, None, Targets(labels, mask, vocab_size, Scoring(Group())))[0] * mask
        ).sum().backward()
    taken = (event.self_cpu_memory_usage for event in profile.events())
    sizes = [size for size in taken if size >= 2 * chunk]
    assert sizes == [2 * chunk] and chunk < tokens * vocab_size
