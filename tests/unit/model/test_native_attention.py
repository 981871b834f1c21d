"""Attention of csrc/kernels is the formula in fp64, up to bf16: groups, positions, documents, parts of a sequence."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from megatron_ext.model.alibi import alibi_slopes
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.gpt import build_model
from megatron_ext.model.native_attention import NativeAttention, Seen, attend
from megatron_ext.model.rotary import apply_rotary
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.world import World
from megatron_ext.platform import cpu_kernels
from tests.unit.tiny import VOCAB_SIZE, tiny_run

pytestmark = pytest.mark.skipif(cpu_kernels.CPU_KERNELS is None, reason="no AVX-512 with bf16, or nothing compiled")

NEAR = 8e-3
"""Of the largest element: two roundings to bf16, of the shares and of the result."""
POSITIONS = {
    "none": Positions(),
    "alibi": Positions(alibi=True),
    "rope": Positions(rotary=Rotary()),
    "a quarter of rope": Positions(rotary=Rotary(500.0, 0.25)),
    "interleaved": Positions(rotary=Rotary(interleaved=True)),
}


def inputs(s: int, heads: int, groups: int, hn: int, keys: int | None = None) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output, bf16; queries and keys are views, as the model's are."""
    generator = torch.Generator().manual_seed(s * heads + hn)
    sizes = ((s, 2, heads, hn + 8), (keys or s, 2, groups, hn + 8), (keys or s, 2, groups, hn), (s, 2, heads, hn))
    query, key, value, upstream = (torch.randn(size, generator=generator).bfloat16() for size in sizes)
    leaves = [x.requires_grad_() for x in (query[..., 8:], key[..., :hn], value)]
    return [*leaves, upstream.flatten(2)]


def exact(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Tensor:
    """The formula on tensors of fp64, nothing left out."""
    heads, group = query.shape[2], query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(group, 2) for x in (key, value))
    scores = torch.einsum("ibnh,jbnh->bnij", query, key) * seen.scale
    distance = torch.arange(len(key)) - seen.first - torch.arange(len(query))[:, None]
    if seen.slopes is not None:
        scores = scores + seen.slopes.double().view(heads, 1, 1) * distance
    hidden = (distance > 0)[None, None]
    if seen.starts is not None:
        hidden = hidden | (torch.arange(len(key)) < seen.starts[:, None, :, None])
    shares = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("bnij,jbnh->ibnh", shares, value).flatten(2)


def document_starts(s: int, cuts: tuple[tuple[int, ...], ...]) -> Tensor:
    """int64 `[b, s]` for documents that begin at these places of each row."""
    starts = torch.zeros(len(cuts), s, dtype=torch.int64)
    for row, places in zip(starts, cuts, strict=True):
        for place in places:
            row[place:] = place
    return starts


def assert_same(found: list[Tensor], expected: list[Tensor], near: float = NEAR) -> None:
    for one, other in zip(found, expected, strict=True):
        bound = near * max(1e-3, other.detach().abs().max().item())  # a lone key's score has no gradient
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=bound)


def with_gradients(out: Tensor, leaves: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def core_attention(kind: type[CausalAttention], positions: Positions, heads: int, dropout: float = 0.0):
    config = SimpleNamespace(attention_dropout=dropout, num_attention_heads=heads, sequence_parallel=False)
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    return kind(config, positions, pg_collection=SimpleNamespace(tp=group))


@pytest.mark.parametrize("hn", [8, 64, 80, 128, 192])
@pytest.mark.parametrize("s", [1, 63, 64, 150])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_heads_of_every_size_and_grouping(heads: int, groups: int, s: int, hn: int):
    *qkv, upstream = inputs(s, heads, groups, hn)
    seen = Seen(0, hn**-0.5)
    precise = [x.detach().double().requires_grad_() for x in qkv]
    found = with_gradients(attend(*qkv, seen), qkv, upstream)
    assert all(x.dtype == torch.bfloat16 for x in found)
    assert_same(found, with_gradients(exact(*precise, seen), precise, upstream))


@pytest.mark.parametrize("first", [0, 5, 64, 100])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("isolated", [False, True])
def test_a_part_of_the_queries_sees_what_the_whole_would_show_it(first: int, alibi: bool, isolated: bool):
    """As under context parallelism; documents that begin inside a block, at its edge, with every token."""
    s, keys = 90, 200
    *qkv, upstream = inputs(s, 4, 2, 64, keys)
    starts = document_starts(keys, ((3, 64, 65, 66, 120), (63, 70, 128))) if isolated else None
    own = None if starts is None else starts[:, first : first + s].contiguous()
    seen = Seen(first, 0.1, alibi_slopes(4) if alibi else None, own)
    precise = [x.detach().double().requires_grad_() for x in qkv]
    found = with_gradients(attend(*qkv, seen), qkv, upstream)
    assert_same(found, with_gradients(exact(*precise, seen), precise, upstream))


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_the_module_does_what_pytorchs_kernels_do(name: str, isolate: bool, restart: bool):
    positions = POSITIONS[name]
    restart = restart and positions.rotary is not None
    positions = Positions(positions.alibi, positions.rotary, isolate, restart)
    starts = document_starts(100, ((9, 64, 80), ())) if positions.reads_documents else None
    *qkv, upstream = inputs(100, 4, 2, 64)
    found = with_gradients(core_attention(NativeAttention, positions, 4)(*qkv, starts), qkv, upstream)
    precise = [x.detach().float().requires_grad_() for x in qkv]
    plain = core_attention(CausalAttention, positions, 4)(*precise, starts)
    # rotated queries and keys are rounded to bf16 as well
    assert_same(found, with_gradients(plain, precise, upstream), 2 * NEAR if positions.rotary else NEAR)


def test_rotation_inside_is_rotation_before():
    """To the bit but for the rounding between: by places that restart, of a part of the channels."""
    rotary, starts = Rotary(500.0, 0.5), document_starts(70, ((30,), (1, 2, 69)))
    *qkv, _ = inputs(70, 2, 2, 64)
    inside = core_attention(NativeAttention, Positions(rotary=rotary, restart=True), 2)(*qkv, starts)
    places = (torch.arange(70) - starts).T
    turned = [apply_rotary(x.float(), rotary, places).bfloat16() for x in qkv[:2]]
    before = core_attention(NativeAttention, Positions(), 2)(*turned, qkv[2], None)
    assert_same([inside], [before], 4e-3)


def test_the_number_of_threads_changes_no_bit():
    *qkv, upstream = inputs(130, 6, 3, 64)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(with_gradients(attend(*qkv, Seen(0, 0.2)), qkv, upstream))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(one.equal(two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float):
    *qkv, _ = inputs(70, 1, 1, 32)
    with torch.no_grad():
        qkv[1][40, 0, 0, 3] = bad
        out = attend(*qkv, Seen(0, 1.0))
    assert out[40:, 0].isnan().any() and out[:40].isfinite().all() and out[:, 1].isfinite().all()


def test_what_the_kernels_cannot_do_is_pytorchs(monkeypatch: pytest.MonkeyPatch):
    """fp32; dropout; a machine without them."""
    *qkv, _ = inputs(12, 2, 2, 16)
    precise = [x.detach().float().requires_grad_() for x in qkv]
    native = core_attention(NativeAttention, Positions(alibi=True), 2)
    assert is_ours(native(*qkv, None)) and not is_ours(native(*precise, None))
    dropping = core_attention(NativeAttention, Positions(alibi=True), 2, dropout=0.1)
    monkeypatch.setattr(dropping, "_numbers_to_drop_by", lambda _: nullcontext())
    assert not is_ours(dropping(*qkv, None)) and is_ours(dropping.eval()(*qkv, None))
    monkeypatch.setattr(cpu_kernels, "CPU_KERNELS", None)
    assert not is_ours(native(*qkv, None))


@pytest.mark.parametrize(
    "wrong",
    [
        Seen(1, 1.0),
        Seen(0, 1.0, torch.ones(3)),
        Seen(0, 1.0, None, torch.zeros(2, 12, dtype=torch.int32)),
        Seen(0, 1.0, None, torch.zeros(1, 12, dtype=torch.int64).expand(2, 12)),
    ],
    ids=["beyond the keys", "slopes of other heads", "int32", "expanded"],
)
def test_what_does_not_match_is_refused_before_memory_is_read(wrong: Seen):
    *qkv, _ = inputs(12, 2, 2, 16)
    with pytest.raises(AssertionError, match=r"query|head"):
        attend(*qkv, wrong)


def is_ours(out: Tensor) -> bool:
    return type(out.grad_fn).__name__ == "_AttendBackward"


@pytest.mark.parametrize(("flag", "kind"), [(None, NativeAttention), ("local", CausalAttention)])
def test_a_flag_turns_them_off(flag: str | None, kind: type[CausalAttention], world: World):
    [model] = build_model(tiny_run(transformer_impl=flag, bf16=True), VOCAB_SIZE, "cpu")
    assert {type(layer.self_attention.core_attention) for layer in model.decoder.layers} == {kind}
