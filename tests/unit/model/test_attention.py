"""Attention is the textbook formula in fp64: all head groupings, ALiBi, RoPE, every slice of tensor parallelism."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_ext.config.rope_scaling import RopeScaling
from megatron_ext.model.alibi import alibi_slopes
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.world import World
from tests.unit.model.textbook import turned

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
POSITIONS = {
    "none": Positions(),
    "alibi": Positions(alibi=True),
    "rope": Positions(rotary=Rotary()),
    "interleaved": Positions(rotary=Rotary(500.0, 0.5, True, RopeScaling("yarn", 4.0, 16))),
    "half_rope": Positions(rotary=Rotary(500.0, 0.5)),
}


def attention(heads: int, positions: Positions, dropout: float = 0.0, tp: tuple[int, int] = (0, 1), **rest: object):
    config = SimpleNamespace(attention_dropout=dropout, num_attention_heads=heads, sequence_parallel=False)
    group = SimpleNamespace(rank=lambda: tp[0], size=lambda: tp[1])
    return CausalAttention(config, positions, pg_collection=SimpleNamespace(tp=group), **rest)


def inputs(heads: int, groups: int, s: int = 11, hn: int = 8, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(heads * 10 + groups)
    return [torch.randn(s, 2, n, hn, generator=generator).to(dtype) for n in (heads, groups, groups)]


def textbook(qkv: list[Tensor], positions: Positions, scale: float | None = None) -> Tensor:
    """One query at a time over the past keys, in fp64; `[s, b, np * hn]`."""
    query, key, value = (x.double() for x in qkv)
    if positions.rotary is not None:
        query, key = turned(query, positions.rotary), turned(key, positions.rotary)
    s, _, heads, hn = query.shape
    slopes = alibi_slopes(heads).double() if positions.alibi else torch.zeros(heads, dtype=torch.float64)
    rows = []
    for i in range(s):
        row = []
        for head in range(heads):
            group = head * key.shape[2] // heads
            scores = torch.einsum("bh,jbh->bj", query[i, :, head], key[: i + 1, :, group])
            scores = scores * (scale or 1 / math.sqrt(hn)) + slopes[head] * torch.arange(-i, 1)
            row.append(torch.einsum("bj,jbh->bh", scores.softmax(-1), value[: i + 1, :, group]))
        rows.append(torch.cat(row, -1))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2), (6, 1), (1, 1)], ids=["mha", "gqa", "mqa", "one"])
def test_attention_is_the_textbooks(heads: int, groups: int, positions: str, dtype: torch.dtype):
    qkv = [x.requires_grad_() for x in inputs(heads, groups, dtype=dtype)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    upstream = torch.randn(11, 2, heads * 8, generator=torch.Generator().manual_seed(9)).to(dtype)
    out = attention(heads, POSITIONS[positions])(*qkv, None)
    out.backward(upstream)
    expected = textbook(exact, POSITIONS[positions])
    expected.backward(upstream.double())
    assert (out.dtype, out.shape) == (dtype, upstream.shape)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(qkv, exact, strict=True):
        scale = float(wanted.grad.abs().max())
        torch.testing.assert_close(actual.grad.double(), wanted.grad, rtol=tolerance, atol=3 * tolerance * scale)


@pytest.mark.parametrize("positions", POSITIONS)
def test_nothing_depends_on_the_future(positions: str):
    qkv = inputs(4, 2)
    core = attention(4, POSITIONS[positions])
    before = core(*qkv, None)
    for x in qkv:
        x[6:] += 7.0
    torch.testing.assert_close(core(*qkv, None)[:6], before[:6])
    assert not torch.allclose(core(*qkv, None)[6:], before[6:])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("heads", [4, 12])
@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_compute_their_slice_of_the_heads(tp: int, heads: int, positions: str):
    """Each rank has its own global slopes, not those of a model with fewer heads."""
    qkv = inputs(heads, 4)
    whole = attention(heads, POSITIONS[positions])(*qkv, None)
    parts = []
    for rank in range(tp):
        mine = [x.chunk(tp, dim=2)[rank] for x in qkv]
        parts.append(attention(heads, POSITIONS[positions], tp=(rank, tp))(*mine, None))
    torch.testing.assert_close(torch.cat(parts, -1), whole)


def test_a_given_scale_takes_the_place_of_the_default():
    qkv = inputs(2, 2)
    out = attention(2, Positions(), softmax_scale=0.5)(*qkv, None)
    torch.testing.assert_close(out.double(), textbook(qkv, Positions(), 0.5), rtol=5e-6, atol=5e-6)


def test_a_sequence_of_another_length_gets_its_own_bias():
    core = attention(2, Positions(alibi=True))
    for s in (5, 9, 5):
        qkv = inputs(2, 2, s=s)
        torch.testing.assert_close(
            core(*qkv, None).double(), textbook(qkv, Positions(alibi=True)), rtol=1e-5, atol=1e-5
        )


def test_dropout_acts_in_training_only_and_follows_the_tensor_parallel_generator(world: World):
    from megatron.core import tensor_parallel

    qkv = inputs(4, 4)
    core = attention(4, Positions(), dropout=0.5)
    plain = attention(4, Positions())(*qkv, None)
    assert core.eval()(*qkv, None).equal(plain)
    core.train()
    drawn = []
    for seed in (1, 1, 2):
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        torch.manual_seed(0)
        drawn.append(core(*qkv, None))
        assert torch.initial_seed() == 0
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2]) and not torch.allclose(drawn[0], plain)


def test_dropout_keeps_the_expected_value(world: World):
    qkv = inputs(2, 2, s=4)
    core = attention(2, Positions(), dropout=0.3).train()
    mean = torch.stack([core(*qkv, None) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, attention(2, Positions())(*qkv, None), rtol=0, atol=0.12)


def test_a_mask_is_refused_rather_than_ignored():
    with pytest.raises(AssertionError, match="mask"):
        attention(2, Positions())(*inputs(2, 2), torch.zeros(1, 1, 11, 11, dtype=torch.bool))


@pytest.mark.parametrize("positions", [Positions(isolate=True), Positions(rotary=Rotary(100.0), restart=True)])
def test_training_must_say_where_documents_begin_and_evaluation_may(positions: Positions):
    core, qkv = attention(2, positions), inputs(2, 2)
    with pytest.raises(AssertionError, match="where documents begin"):
        core.train()(*qkv, None)
    whole = core.eval()(*qkv, None)
    assert whole.equal(core(*qkv, torch.zeros(2, 11, dtype=torch.int64)))


# two rows with cuts of their own: 11 = 4 + 1 + 6 and 11 = 2 + 9
STARTS = torch.tensor([[0] * 4 + [4] + [5] * 6, [0] * 2 + [2] * 9])
DOCUMENTS = [[(0, 4), (4, 5), (5, 11)], [(0, 2), (2, 11)]]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2), (6, 1)], ids=["mha", "gqa", "mqa"])
def test_isolated_documents_are_documents_alone(heads: int, groups: int, positions: str):
    """Every document's output and gradients are the textbook's of that document by itself, at position 0."""
    qkv = [x.requires_grad_() for x in inputs(heads, groups)]
    upstream = torch.randn(11, 2, heads * 8, generator=torch.Generator().manual_seed(9))
    out = attention(heads, dataclasses.replace(POSITIONS[positions], isolate=True))(*qkv, STARTS)
    out.backward(upstream)
    for row, documents in enumerate(DOCUMENTS):
        for begin, end in documents:
            part = (slice(begin, end), slice(row, row + 1))
            alone = [x.detach()[part].double().requires_grad_() for x in qkv]
            expected = textbook(alone, POSITIONS[positions])
            expected.backward(upstream[part].double())
            torch.testing.assert_close(out[part].double(), expected, rtol=1e-5, atol=1e-5)
            for mixed, single in zip(qkv, alone, strict=True):
                torch.testing.assert_close(mixed.grad[part].double(), single.grad, rtol=1e-5, atol=1e-5)


def test_documents_that_are_not_isolated_see_each_other():
    qkv = inputs(4, 4)
    whole = attention(4, Positions())(*qkv, None)
    isolated = attention(4, Positions(isolate=True))(*qkv, STARTS)
    same = torch.isclose(whole, isolated, atol=1e-5).all(-1)
    assert same[:4, 0].all() and same[:2, 1].all(), "the first document of a row has nobody before it"
    assert not same[4:, 0].any() and not same[2:, 1].any()


def test_restarted_rotation_counts_from_the_documents_begin_and_hides_nothing():
    qkv = inputs(4, 2)
    out = attention(4, Positions(rotary=Rotary(100.0), restart=True))(*qkv, STARTS)
    query, key = (
        torch.cat(
            [
                torch.cat([turned(x[begin:end, row : row + 1], Rotary(100.0)) for begin, end in documents])
                for row, documents in enumerate(DOCUMENTS)
            ],
            dim=1,
        )
        for x in qkv[:2]
    )
    expected = textbook([query, key, qkv[2]], Positions())
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(out, attention(4, Positions(rotary=Rotary(100.0)))(*qkv, None), atol=1e-3)


def test_isolated_documents_drop_as_the_generator_says(world: World):
    from megatron.core import tensor_parallel

    core = attention(4, Positions(isolate=True), dropout=0.5).train()
    plain = attention(4, Positions(isolate=True))(*inputs(4, 4), STARTS)
    drawn = []
    for seed in (1, 1, 2):
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        drawn.append(core(*inputs(4, 4), STARTS))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2]) and not torch.allclose(drawn[0], plain)
