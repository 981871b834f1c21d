"""Core attention on a CPU in bf16, computed by csrc/kernels: ALiBi, RoPE and documents inside, nothing materialised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_ext.model.attention import CausalAttention
from megatron_ext.model.context_parallel import gather_keys_and_values
from megatron_ext.model.document_attention import restarted_positions
from megatron_ext.model.rotary import apply_rotary, rotary_tables
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.sequence_chunks import chunks_of
from megatron_ext.platform.cpu_kernels import CPU_KERNELS, fits


class NativeAttention(CausalAttention):
    """`CausalAttention` on our own kernels where these fit: bf16, a CPU, no dropout; else as that class does it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object) -> Tensor:
        """Attend; shapes and result as in `CausalAttention.forward`."""
        if not fits(query, key, value) or (self.dropout and self.training):
            return super().forward(query, key, value, attention_mask)
        starts = self.documents(attention_mask)
        if self.context is not None:
            return self._attend_with_others(query, key, value, starts)
        rotary, restart = self.positions.rotary, self.positions.restart
        places = restarted_positions(starts, query.device) if restart and starts is not None else None
        rotation = None
        if rotary is not None and rotary.interleaved:
            query, key = apply_rotary(query, rotary, places), apply_rotary(key, rotary, places)
        elif rotary is not None:
            rotation = Rotation.of(rotary, query, None if places is None else places.T.contiguous())
        return attend(query, key, value, self._seen(0, query, starts, rotation))

    def _attend_with_others(self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> Tensor:
        """Attend from this rank's two chunks of each sequence, `[s/cp, b, ...]`; collective over `self.context`."""
        if not fits(query, key, value) or (self.dropout and self.training):
            return super()._attend_with_others(query, key, value, starts)
        assert self.context is not None
        query, key = self.rotated_part(query, key, starts)
        keys, values = gather_keys_and_values(key, value, self.context)
        outs = []
        for chunk, queries in zip(chunks_of(self.context.rank(), self.context.size()), query.chunk(2), strict=True):
            first, end = chunk * len(queries), (chunk + 1) * len(queries)
            own = None if starts is None else starts[:, first:end]
            outs.append(attend(queries, keys[:end], values[:end], self._seen(first, query, own)))
        return torch.cat(outs)

    def _seen(self, first: int, query: Tensor, starts: Tensor | None, rotation: Rotation | None = None) -> Seen:
        scale = query.shape[-1] ** -0.5 if self.scale is None else float(self.scale)
        slopes = torch.tensor(self.slopes, dtype=torch.float32) if self.slopes else None
        isolated = starts.contiguous() if starts is not None and self.positions.isolate else None
        return Seen(first, scale, slopes, isolated, rotation)


@dataclass(frozen=True)
class Rotation:
    """RoPE's tables, fp32 `[s, 1, 1, D/2]`, for pairs d, d + D/2; the tokens' places `[b, s]` if they restart."""

    cosines: Tensor
    sines: Tensor
    places: Tensor | None

    @classmethod
    def of(cls, rotary: Rotary, query: Tensor, places: Tensor | None) -> Rotation:
        """Of the channels that `rotary` turns in `query`, `[s, b, n, hn]`."""
        rotated = int(query.shape[-1] * rotary.percent)
        return cls(*rotary_tables(len(query), rotated, rotary, torch.float32, query.device), places)


@dataclass(frozen=True)
class Seen:
    """What the queries see of the keys, and how scores are made; every tensor contiguous.

    Attributes:
        first: the key at which the first query stands; the others follow it.
        scale: of the products of queries and keys.
        slopes: ALiBi's, fp32 `[n]`.
        starts: int64 `[b, queries]`, the first key that each query sees.
        rotation: of queries and keys, which are then of the same tokens.
    """

    first: int
    scale: float
    slopes: Tensor | None = None
    starts: Tensor | None = None
    rotation: Rotation | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> Tensor:
    """Causal attention of bf16 tensors on a CPU; the gradients are computed by blocks as well. Rank-local.

    Args:
        query: `[queries, b, n, hn]`.
        key: `[keys, b, ng, hn]`, n a multiple of ng.
        value: as `key`.
        seen: masks and positions.

    Returns:
        `[queries, b, n * hn]`.

    Source: arXiv:2205.14135 and arXiv:2307.08691.
    """
    _refuse_what_does_not_match(query, key, value, seen)
    return _Attend.apply(*(x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value)), seen)


def _refuse_what_does_not_match(query: Tensor, key: Tensor, value: Tensor, seen: Seen) -> None:
    """The kernels trust what they are told; a wrong size would be read beyond its memory."""
    (length, batch, heads, hn), (keys, key_batch, groups, key_hn) = query.shape, key.shape
    assert fits(query, key, value) and key.shape == value.shape, "bf16 on a CPU, a value for each key"
    assert key_batch == batch and key_hn == hn and heads % groups == 0, "heads that match"
    assert 0 <= seen.first <= keys - length, "every query stands at a key"
    assert _is(seen.slopes, torch.float32, (heads,)), "a slope for each head"
    assert _is(seen.starts, torch.int64, (batch, length)), "a first key for each query"
    if seen.rotation is not None:
        cosines, sines, places = seen.rotation.cosines, seen.rotation.sines, seen.rotation.places
        assert _is(cosines, torch.float32, (keys, 1, 1, cosines.shape[-1])) and 2 * cosines.shape[-1] <= hn, "angles"
        assert _is(sines, torch.float32, tuple(cosines.shape)) and keys == length, "of queries and keys alike"
        assert _is(places, torch.int64, (batch, length)), "a place for each token"


def _is(tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Whether a tensor, if there is one, is what the kernels read: its numbers side by side, on the CPU."""
    if tensor is None:
        return True
    return (tensor.dtype, tensor.shape, tensor.device.type) == (dtype, shape, "cpu") and tensor.is_contiguous()


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, seen):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        length, b, n, hn = query.shape
        out = torch.empty(length, b, n * hn, dtype=query.dtype)
        sums = torch.empty(b, n, length, dtype=torch.float32)
        views = [_view(x) for x in (query, key, value, out.view(query.shape))]
        _kernels().attention_forward(*_problem(query, key, seen), views, sums.data_ptr())
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.seen = seen
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, of_out):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN205
        query, key, value, out, sums = ctx.saved_tensors
        of_query, of_key, of_value = gradients = [torch.empty(x.shape, dtype=x.dtype) for x in (query, key, value)]
        of_out = of_out.contiguous().view(query.shape)
        views = [_view(x) for x in (query, key, value, out.view(query.shape))]
        _kernels().attention_backward(
            *_problem(query, key, ctx.seen), views, sums.data_ptr(), [_view(x) for x in (of_out, *gradients)]
        )
        return of_query, of_key, of_value, None


def _problem(query: Tensor, key: Tensor, seen: Seen) -> tuple[list[int], float, list[int]]:
    """Sizes, scale, and the addresses of what positions and masks are made of (csrc/kernels/attention_bindings.cpp).

    The addresses are those of tensors that `seen` holds.
    """
    length, b, n, hn = query.shape
    keys, _, groups, _ = key.shape
    rotation = [0, 0, 0, 0, 0]
    if seen.rotation is not None:
        cosines, sines, places = seen.rotation.cosines, seen.rotation.sines, seen.rotation.places
        where = 0 if places is None else places.data_ptr()
        rotation = [cosines.data_ptr(), sines.data_ptr(), cosines.shape[-1], where, where]
    addresses = [0 if x is None else x.data_ptr() for x in (seen.slopes, seen.starts)]
    return [b, n, groups, length, keys, hn, seen.first], seen.scale, [*addresses, *rotation]


def _view(x: Tensor) -> list[int]:
    """Address and strides of `[s, b, n, hn]`."""
    return [x.data_ptr(), *x.stride()[:3]]


def _kernels() -> Any:
    assert CPU_KERNELS is not None
    return CPU_KERNELS
