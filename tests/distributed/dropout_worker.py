"""Dropout over tensor- and context-parallel ranks, and through recomputation; asserts what must hold."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from megatron_ext.parallel.world import start_world, stop_model_parallel
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training.metrics import TrainState
from tests.distributed.tiny import CP4, LAYOUTS, TP, tiny_run
from tests.distributed.training import started, train_steps

OF_PROCESSES = {2: (f"{TP} 2", f"{TP} 2 --sequence-parallel"), 4: (CP4["tp2 sp cp2"],)}
"""Processes -> layouts."""
DROPOUT = "--hidden-dropout 0.3 --attention-dropout 0.2 --train-iters 9"
RECOMPUTED = ("recompute full", "recompute selective", "recompute modules")


def main(data: str, processes: str) -> None:
    """Without and with sequence parallelism, and with ranks that share sequences besides."""
    with start_world(tiny_run("gpt2", "--micro-batch-size 1", int(processes), Path(data)), CpuPlatform()):
        stop_model_parallel()
        for layout in OF_PROCESSES[int(processes)]:
            kept, hidden, plain = trained(f"{DROPOUT} {layout}", data)
            # whole sequences are copies, dropped alike; slices of the sequence are dropped each in its own way
            assert same_on_all_ranks(kept) is same_on_all_ranks(hidden) is ("--sequence-parallel" not in layout), layout
            for name in RECOMPUTED:
                _, _, recomputed = trained(f"{DROPOUT} {layout} {LAYOUTS[1][name]}", data)
                assert recomputed == plain, f"{layout}, {name}: {recomputed} for {plain}"


def trained(flags: str, data: str) -> tuple[torch.Tensor, torch.Tensor, list[tuple]]:
    """Train three steps; what the embedding's dropout kept, what the last layer gave, losses and gradient norms."""
    kept: list[torch.Tensor] = []
    hidden: list[torch.Tensor] = []
    with started(tiny_run("gpt2", flags, dist.get_world_size(), Path(data))) as parts:
        [model] = parts.models
        model.embedding.embedding_dropout.register_forward_hook(lambda *call: kept.append(call[2].detach() != 0.0))
        model.decoder.layers[-1].mlp.register_forward_hook(lambda *call: hidden.append(call[1][0].detach().clone()))
        results = train_steps(parts, TrainState(), 3)
    masks = torch.stack(kept).float()
    assert 0.6 < masks.mean() < 0.8 and not masks[0].equal(masks[1])
    return masks, hidden[0], [(result.lm_loss, result.grad_norm) for result in results]


def same_on_all_ranks(tensor: torch.Tensor) -> bool:
    """Whether all ranks have these bits."""
    shares = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, tensor.contiguous())
    return all(share.equal(tensor) for share in shares)
