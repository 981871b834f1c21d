"""Ranks that share a sequence compute, together, the attention of one rank that holds all of it."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import CausalBias

from megatron_ext.model import attention as module
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.context_parallel import chunk_mask, context_group, first_visible, places_of_part
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.sequence_chunks import join_parts, part_of
from megatron_ext.parallel.world import World
from tests.unit.model.test_attention import POSITIONS, inputs, textbook
from tests.unit.model.textbook import turned

S = 16
# two rows with cuts of their own, inside chunks and between them; then one long document and a short one before it
CUTS = {"short": [[5, 1, 4, 6], [8, 8]], "long": [[3, 13], [3, 13]], "none": [[16], [16]]}


def starts_of(rows: list[list[int]]) -> Tensor:
    ends = [torch.tensor(lengths).cumsum(0) for lengths in rows]
    return torch.stack(
        [torch.repeat_interleave(end - torch.tensor(n), torch.tensor(n)) for end, n in zip(ends, rows, strict=True)]
    )


class Ranks:
    """Runs the attention of all ranks in turn. What each of them gathers is put together in between: once all keys and
    values are known, the ranks run again and get them."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size, self.known = size, {}
        monkeypatch.setattr(module, "gather_keys_and_values", self.gather)

    def gather(self, key: Tensor, value: Tensor, group: SimpleNamespace) -> list[Tensor]:
        self.known[group.rank()] = (key, value)
        complete = len(self.known) == self.size
        own = [(key, value)] * self.size
        parts = [self.known[rank] for rank in range(self.size)] if complete else own
        return [join_parts(torch.stack(tensors)) for tensors in zip(*parts, strict=True)]

    def attend(
        self, qkv: list[Tensor], positions: Positions, starts: Tensor | None = None, dropout: float = 0.0
    ) -> Tensor:
        """Attention of whole sequences, `[s, b, np * hn]`."""
        self.known = {}
        for _ in range(2):
            outs = [self.attend_on(rank, qkv, positions, starts, dropout) for rank in range(self.size)]
        return join_parts(torch.stack(outs))

    def attend_on(
        self, rank: int, qkv: list[Tensor], positions: Positions, starts: Tensor | None, dropout: float
    ) -> Tensor:
        tp = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
        cp = SimpleNamespace(rank=lambda: rank, size=lambda: self.size)
        heads = qkv[0].shape[2]
        config = SimpleNamespace(attention_dropout=dropout, num_attention_heads=heads, sequence_parallel=False)
        core = CausalAttention(config, positions, pg_collection=SimpleNamespace(tp=tp, cp=cp))
        return core(*(part_of(x, rank, self.size) for x in qkv), starts)


@pytest.fixture(params=[2, 4], ids=["cp2", "cp4"])
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(request.param, monkeypatch)


def same_gradients(found: Tensor, expected: Tensor, qkv: list[Tensor], exact: list[Tensor]) -> None:
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    for ours, wanted in zip(torch.autograd.grad(found, qkv, upstream), theirs, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2)], ids=["mha", "gqa"])
def test_attention_is_the_textbooks(ranks: Ranks, heads: int, groups: int, positions: str):
    qkv = [x.requires_grad_() for x in inputs(heads, groups, s=S)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found = ranks.attend(qkv, POSITIONS[positions])
    same_gradients(found, textbook(exact, POSITIONS[positions]), qkv, exact)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_isolated_documents_are_documents_alone(ranks: Ranks, positions: str, cut: str):
    qkv = [x.requires_grad_() for x in inputs(6, 2, s=S)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found = ranks.attend(qkv, dataclasses.replace(POSITIONS[positions], isolate=True), starts_of(CUTS[cut]))
    rows = []
    for row, lengths in enumerate(CUTS[cut]):
        documents = zip(*(x[:, row : row + 1].split(lengths) for x in exact), strict=True)
        rows.append(torch.cat([textbook(list(document), POSITIONS[positions]) for document in documents]))
    same_gradients(found, torch.cat(rows, 1), qkv, exact)


def test_restarted_rotation_counts_from_the_documents_begin(ranks: Ranks):
    rotary, cut = Rotary(100.0), CUTS["short"]
    qkv = [x.requires_grad_() for x in inputs(4, 2, s=S)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found = ranks.attend(qkv, Positions(rotary=rotary, restart=True), starts_of(cut))
    query, key = (
        torch.cat(
            [
                torch.cat([turned(document, rotary) for document in x[:, row : row + 1].split(lengths)])
                for row, lengths in enumerate(cut)
            ],
            dim=1,
        )
        for x in exact[:2]
    )
    same_gradients(found, textbook([query, key, exact[2]], Positions()), qkv, exact)


def test_sequences_of_other_lengths_and_batches_get_masks_of_their_own(ranks: Ranks):
    for positions in (Positions(), Positions(alibi=True)):
        for s in (8, 24, 8):
            qkv = inputs(4, 4, s=s)
            found = ranks.attend(qkv, positions)
            torch.testing.assert_close(found.double(), textbook(qkv, positions), rtol=1e-5, atol=1e-5)


def test_dropout_acts_and_follows_the_tensor_parallel_generator(ranks: Ranks, world: World):
    from megatron.core import tensor_parallel

    qkv, drawn = inputs(4, 4, s=S), []
    for seed in (1, 1, 2):
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        drawn.append(ranks.attend(qkv, Positions(), dropout=0.5))
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])
    assert not torch.allclose(drawn[0], ranks.attend(qkv, Positions()))


def test_a_gpu_is_told_the_triangle_and_given_no_matrix():
    """What it is told means what a CPU is given as a matrix."""
    q, k, v = (torch.randn(1, 2, s, 8, generator=torch.Generator().manual_seed(s)) for s in (4, 12, 12))
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    for starts, begin in ((None, 0), (starts_of([[3, 13]]), 3)):
        place, told = chunk_mask((), starts, (8, 12), on_gpu)
        same_place, matrix = chunk_mask((), starts, (8, 12), q)
        assert isinstance(told, CausalBias) and not isinstance(matrix, CausalBias) and place == same_place == begin
        keys, values = k[:, :, begin:], v[:, :, begin:]
        one, other = (functional.scaled_dot_product_attention(q, keys, values, mask) for mask in (told, matrix))
        torch.testing.assert_close(one, other)


def test_a_square_needs_no_mask_on_any_device():
    for device in ("cpu", "cuda"):
        query = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
        assert chunk_mask((), None, (0, 4), query) == (0, None)
        assert chunk_mask((), starts_of([[4, 12], [4, 12]]), (4, 8), query) == (4, None)


def test_the_layers_of_a_rank_share_a_mask():
    starts, query = starts_of(CUTS["short"]), torch.zeros(4, 2, 1, 8)
    for slopes in ((), (0.5, 0.25)):
        first, again = (chunk_mask(slopes, seen, (4, 8), query)[1] for seen in (starts, starts.detach()))
        assert first is again and first.shape == (2, max(1, len(slopes)), 4, 8)


def test_keys_before_all_documents_of_a_chunk_are_left_out():
    starts = starts_of([[5, 1, 4, 6], [8, 8]])
    assert first_visible(starts, 0, 4) == (0, False)
    assert first_visible(starts, 4, 8) == (0, True)
    assert first_visible(starts, 8, 12) == (6, True)
    assert first_visible(starts, 12, 16) == (8, True)
    assert first_visible(None, 12, 16) == (0, False)


def test_a_rank_that_holds_whole_sequences_has_no_group():
    alone, two = (SimpleNamespace(size=lambda n=n: n) for n in (1, 2))
    assert context_group(SimpleNamespace(cp=alone)) is None and context_group(SimpleNamespace()) is None
    assert context_group(SimpleNamespace(cp=two)) is two


def test_places_are_those_of_the_part():
    assert places_of_part(8, 1, 2, torch.device("cpu")).tolist() == [[2], [3], [4], [5]]
