"""Core attention on PyTorch's scaled-dot-product kernels, causal, with grouped queries, ALiBi, isolated documents.

Under context parallelism a rank's queries are two chunks of the sequence; see `context_parallel.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.alibi import alibi_bias, alibi_slopes
from megatron_ext.model.context_parallel import chunk_mask, context_group, gather_keys_and_values, places_of_part
from megatron_ext.model.document_attention import attend_by_document, plan_documents, restarted_positions
from megatron_ext.model.rotary import apply_rotary
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.sequence_chunks import chunks_of
from megatron_ext.platform.kernels import TORCH


@dataclass(frozen=True)
class Positions:
    """How attention knows positions: not at all, by ALiBi's bias, or by rotating queries and keys; and documents.

    Both kinds of position are relative: a score depends on the distance of query and key alone. So where documents
    are isolated it makes no difference whether positions begin again in each of them, and `restart` is about RoPE
    between documents that do see each other.

    Attributes:
        alibi: ALiBi's bias.
        rotary: how queries and keys are rotated; None rotates nothing.
        isolate: no token attends to another document of its sample (`--reset-attention-mask`).
        restart: rotate by the place in the document, not in the sample (`--reset-position-ids`).
        kernels: whose kernels rotate, as in `Kernels.elementwise`.
    """

    alibi: bool = False
    rotary: Rotary | None = None
    isolate: bool = False
    restart: bool = False
    kernels: str = TORCH

    def turned(self, *heads: Tensor, places: Tensor | None = None, length: int | None = None) -> Iterator[Tensor]:
        """Queries, keys: each `[s, b, n, hn]` rotated as `apply_rotary` says; where nothing rotates, themselves."""
        if self.rotary is None:
            yield from heads
        else:
            for x in heads:
                yield apply_rotary(x, self.rotary, places, length, self.kernels)

    @property
    def reads_documents(self) -> bool:
        """Whether attention must be told where documents begin, on every pipeline stage."""
        return self.isolate or self.restart


class CausalAttention(torch.nn.Module):
    """softmax(q k^T / sqrt(hn) + bias) v, causal; the bias is zero or ALiBi, q and k may be rotated (RoPE).

    Takes megatron-core's place for `core_attention`, whose local version refuses a bias. Rank-local: every
    tensor-parallel rank works on its own heads. Under context parallelism s stands for the s/cp tokens of a rank, and
    every call is collective over the ranks that share a sequence.

    Args:
        config: megatron-core's config; `num_attention_heads` is global.
        positions: ALiBi, for this rank's slice of the global heads, or RoPE.
        **rest: what megatron-core passes to every core attention; only `pg_collection` and `softmax_scale` matter.
    """

    def __init__(self, config: TransformerConfig, positions: Positions, **rest: object) -> None:
        super().__init__()
        self.dropout = config.attention_dropout
        self.sequence_parallel = config.sequence_parallel
        self.scale = rest.get("softmax_scale")
        group = rest["pg_collection"].tp  # type: ignore[attr-defined]
        heads = config.num_attention_heads // group.size()
        first = group.rank() * heads
        self.positions = positions
        slopes = alibi_slopes(config.num_attention_heads)[first : first + heads]
        self.slopes = tuple(slopes.tolist()) if positions.alibi else ()
        self.context = context_group(rest["pg_collection"])

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object) -> Tensor:
        """Attend.

        Args:
            query: `[s, b, np/tp, hn]`.
            key: `[s, b, max(1, ng/tp), hn]`.
            value: `[s, b, max(1, ng/tp), hn]`.
            attention_mask: not a mask, which is described and never materialised: int64 `[b, s]`, the place in its
                row at which each token's document begins, when `positions.reads_documents`; None for rows of one
                document, and always None otherwise. It is about the whole row under context parallelism too.

        Returns:
            `[s, b, np/tp * hn]`, dtype of `query`.
        """
        starts, positions, device = self.documents(attention_mask), self.positions, query.device
        if self.context is not None:
            return self._attend_with_others(query, key, value, starts)
        places = restarted_positions(starts, device) if positions.restart and starts is not None else None
        query, key = positions.turned(query, key, places=places)
        plan = plan_documents(starts, device) if positions.isolate and starts is not None else None
        s, b, heads, hn = query.shape
        bias = _cached_bias(self.slopes, s, device) if self.slopes else None
        dropout = self.dropout if self.training else 0.0
        attend = functools.partial(self._attend, bias=bias, dropout=dropout)
        with self._numbers_to_drop_by(dropout):
            if plan is not None:
                return attend_by_document(query, key, value, plan, attend)
            out = attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
        return out.permute(2, 0, 1, 3).reshape(s, b, heads * hn)

    def documents(self, starts: Tensor | None) -> Tensor | None:
        """What came in place of a mask, which must be there when this model trains on documents, and only then."""
        if starts is None:
            assert not (self.training and self.positions.reads_documents), "training must say where documents begin"
        else:
            assert self.positions.reads_documents, "documents are not isolated in this model, so no mask may come in"
        return starts

    def rotated_part(self, query: Tensor, key: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries and keys `[s/cp, b, ...]` of this rank, rotated by their places in whole sequences."""
        assert self.context is not None
        positions, rank, size = self.positions, self.context.rank(), self.context.size()
        if positions.rotary is None:
            return query, key
        length = size * len(query)
        places = places_of_part(length, rank, size, query.device)
        if positions.restart and starts is not None:
            places = restarted_positions(starts, query.device, (rank, size))
        query, key = positions.turned(query, key, places=places, length=length)
        return query, key

    def _numbers_to_drop_by(self, dropout: float) -> AbstractContextManager[None]:
        """The generator of this rank's heads, which no other rank holds.

        Under sequence parallelism megatron-core runs the whole stage inside that fork. A second one would go on with
        the same numbers, but not in a recomputation, which is outside of the first: it would drop something else.
        """
        if not dropout or self.sequence_parallel:
            return nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()

    def _attend_with_others(self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> Tensor:
        """Attend from this rank's two chunks of each sequence, `[s/cp, b, ...]`; collective over `self.context`."""
        assert self.context is not None
        query, key = self.rotated_part(query, key, starts)
        keys, values = gather_keys_and_values(key, value, self.context)
        documents = starts if self.positions.isolate else None
        dropout = self.dropout if self.training else 0.0
        outs = []
        with self._numbers_to_drop_by(dropout):
            for chunk, queries in zip(chunks_of(self.context.rank(), self.context.size()), query.chunk(2), strict=True):
                end = (chunk + 1) * len(queries)
                begin, mask = chunk_mask(self.slopes, documents, (end - len(queries), end), queries)
                q, k, v = (x.permute(1, 2, 0, 3) for x in (queries, keys[begin:end], values[begin:end]))
                outs.append(self._kernel(q, k, v, mask, dropout).permute(2, 0, 1, 3))
        return torch.cat(outs).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
        """Causal attention of q, k, v `[b, n, s, hn]`; a shorter sequence has the first part of the bias."""
        length = q.shape[2]
        return self._kernel(q, k, v, None if bias is None else bias[:, :, :length, :length], dropout)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
        """Attention of q `[b, n, l, hn]` to k and v under `mask`; None is causal, for as many queries as keys."""
        grouped = k.shape[1] != q.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )


@functools.lru_cache(maxsize=2)
def _cached_bias(slopes: tuple[float, ...], sequence_length: int, device: torch.device) -> Tensor:
    """Every layer of a rank shares one bias of `[1, np/tp, s, s]`."""
    return alibi_bias(torch.tensor(slopes, dtype=torch.float32, device=device), sequence_length)
