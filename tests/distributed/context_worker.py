"""Ranks that share sequences: what they gather, the gradients that come back, totals per source, dropout.

Exits with an AssertionError at the first difference.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.context_parallel import gather_keys_and_values, previous_tokens
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.parallel.sequence_chunks import part_of
from megatron_ext.parallel.world import World, start_world
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training.forward import sum_losses
from megatron_ext.training.step import seed_step, sum_reports
from tests.distributed.tiny import CP, tiny_run

S, B, GROUPS, HN = 16, 2, 2, 8
KINDS = {
    "alibi": Positions(alibi=True),
    "rope": Positions(rotary=Rotary(100.0, 0.5)),
    "isolated": Positions(isolate=True),
}


def main(processes: str) -> None:
    """Every check, with all processes on each sequence."""
    size = int(processes)
    with start_world(tiny_run("rope", f"{CP} {size}", size, Path("none")), CpuPlatform()) as world:
        group = parallel_state.get_context_parallel_group()
        gathered_in_order_and_summed_in_fp32(group)
        same_predecessors(group)
        for name, positions in KINDS.items():
            same_attention(name, positions, group)
        same_totals(world)
        own_dropout(world, group)


def gathered_in_order_and_summed_in_fp32(group: dist.ProcessGroup) -> None:
    """In bf16: rank r gives its part a gradient of 256 or 1, which bf16 cannot add up (256 + 1 = 256)."""
    rank, size = group.rank(), group.size()
    whole = torch.arange(S, dtype=torch.bfloat16)[:, None, None, None].expand(S, B, GROUPS, HN)
    key, value = (part_of(sign * whole, rank, size).requires_grad_() for sign in (1, -1))
    keys, values = gather_keys_and_values(key, value, group)
    assert keys.equal(whole) and values.equal(-whole), f"rank {rank} gathered another order"
    weight = 256.0 if rank == 0 else 1.0
    weighted = weight * keys.float() * torch.arange(1.0, S + 1)[:, None, None, None]
    (weighted.sum() + weight * values.float().sum()).backward()
    total = 256.0 + size - 1
    places = part_of(torch.arange(1.0, S + 1), rank, size)[:, None, None, None].expand_as(key)
    # what one rank finds is bf16 already: weight x place
    found = 256.0 * places + (size - 1) * places
    assert key.grad.equal(found.bfloat16()), f"rank {rank}: {key.grad[:, 0, 0, 0]}"
    assert value.grad.equal(torch.full_like(value, total)), f"rank {rank}: {value.grad[:, 0, 0, 0]}"


def same_predecessors(group: dist.ProcessGroup) -> None:
    """Across the borders of chunks too, and gradients go back to where the tokens are."""
    rank, size = group.rank(), group.size()
    whole = torch.arange(1.0, S * B + 1).view(S, B, 1).requires_grad_()
    part = part_of(whole.detach(), rank, size).requires_grad_()
    expected, found = previous_tokens(whole, None), previous_tokens(part, group)
    assert expected[0].eq(0).all() and expected[1:].equal(whole[:-1])
    weight = torch.arange(float(S))[:, None, None]
    (weight * expected).sum().backward()
    (part_of(weight, rank, size) * found).sum().backward()
    assert found.equal(part_of(expected, rank, size)), f"rank {rank} sees other predecessors"
    assert part.grad.equal(part_of(whole.grad, rank, size)), f"rank {rank}: {part.grad.flatten()}"


def attention(positions: Positions, cp: object, dropout: float = 0.0) -> CausalAttention:
    """Of four heads."""
    one = SimpleNamespace(rank=lambda: 0, size=lambda: 1)
    config = SimpleNamespace(attention_dropout=dropout, num_attention_heads=4, sequence_parallel=False)
    return CausalAttention(config, positions, pg_collection=SimpleNamespace(tp=one, cp=cp or one))


def inputs() -> list[Tensor]:
    """Query, key and value of whole sequences, the same on every rank."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(S, B, heads, HN, generator=generator) for heads in (4, GROUPS, GROUPS)]


def same_attention(name: str, positions: Positions, group: dist.ProcessGroup) -> None:
    """Outputs and gradients are the parts of what one rank computes (see the unit tests for the textbook)."""
    starts = torch.tensor([[0] * 5 + [5] * 11, [0] * 9 + [9] * 7]) if positions.isolate else None
    whole = [x.requires_grad_() for x in inputs()]
    parts = [part_of(x.detach(), group.rank(), group.size()).requires_grad_() for x in whole]
    upstream = torch.randn(S, B, 4 * HN, generator=torch.Generator().manual_seed(2))
    expected = attention(positions, None)(*whole, starts)
    expected.backward(upstream)
    found = attention(positions, group)(*parts, starts)
    found.backward(part_of(upstream, group.rank(), group.size()))
    pairs = [(found, expected), *((part.grad, x.grad) for part, x in zip(parts, whole, strict=True))]
    for one, other in pairs:
        wanted = part_of(other, group.rank(), group.size())
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-5, msg=lambda text: f"{name}: {text}")


def same_totals(world: World) -> None:
    """Samples are counted once, and their losses rounded once, as if one rank had seen all of each."""
    generator = torch.Generator().manual_seed(3)
    losses, mask = torch.rand(6, S, generator=generator), (torch.rand(6, S, generator=generator) > 0.3).float()
    losses[4, 3] = torch.inf  # a sample that no total may hold, on the ranks that have its other tokens neither
    sources = torch.tensor([0, 1, 1, 0, 2, 2])
    parts = [part_of(x, world.at.cp_rank, world.grid.cp_size, dim=1) for x in (mask, losses)]
    found = sum_reports([sum_losses(*parts, sources)[2]], world, 3).sources
    masked = losses.double() * mask
    kept = masked.isfinite().all(1)
    for source in range(3):
        here = (sources == source) & kept
        units = (masked[here].sum(1) * 2**16).round().sum()
        wanted = [(sources == source).sum(), mask[here].sum(), units]
        assert found.sums[:2, source].tolist() == [int(x) for x in wanted[:2]], (source, found.sums)
        assert abs(found.sums[2, source] - units) <= 2, (source, found.sums, units)


def own_dropout(world: World, group: dist.ProcessGroup) -> None:
    """Ranks of a sequence draw masks of their own for their tokens, and the same ones again from the same seed."""
    ones = [torch.ones(S // group.size(), B, heads, HN) for heads in (4, GROUPS, GROUPS)]
    core, drawn = attention(Positions(), group, dropout=0.5).train(), []
    for iteration in (1, 1, 2):
        seed_step(world, 7, iteration)
        drawn.append(core(*ones, None))
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])
    # the last query sees many keys, the first one a single key: compare what was kept for the longest chunk
    everyone = [torch.empty_like(drawn[0]) for _ in range(group.size())]
    dist.all_gather(everyone, drawn[0], group=group)
    assert not any(one.equal(other) for index, one in enumerate(everyone) for other in everyone[:index])
