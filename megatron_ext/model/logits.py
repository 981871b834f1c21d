"""The training model's own logits in fp32 on one CPU process: the reference that an export is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from megatron_ext.config import RunConfig


@torch.no_grad()
def full_logits(run: RunConfig, vocab_size: int, read: Callable[[str], Tensor], tokens: Tensor) -> Tensor:
    """Return fp32 logits `[b, s, vocab_size]` of the model that training builds, in evaluation mode.

    Starts a world of this one process for the time of the call.

    Args:
        run: the model; layout and precision in it do not matter.
        vocab_size: tokens without padding.
        read: gives the full tensor of a canonical name.
        tokens: int64 `[b, s]`.
    """
    from megatron_ext.checkpoint.full import single_process
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.init import sharded_parameters
    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform.cpu import CpuPlatform

    rows = read("embedding.word_embeddings.weight").shape[0]
    single = single_process(run).with_values(bf16=False, fp16=False, padded_vocab_size=rows)
    with start_world(single, CpuPlatform()):
        [model] = build_model(single, vocab_size, "cpu")
        for shard in sharded_parameters(model):
            full = read(shard.key)
            slices = tuple(
                slice(start, start + length)
                for start, length in zip(shard.global_offset, shard.local_shape, strict=True)
            )
            shard.data.detach().copy_(full[slices])
        model.eval()
        positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        logits = model(tokens, positions, None)
    return logits[..., :vocab_size].float()
