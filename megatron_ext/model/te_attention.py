"""Core attention on Transformer Engine's kernels, where that library is installed and the device is a GPU."""

from __future__ import annotations

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_ext.model.attention import Positions
from megatron_ext.model.context_parallel import context_group, places_of_part


class TransformerEngineAttention(torch.nn.Module):
    """The causal attention of `CausalAttention`, computed by Transformer Engine; RoPE or no positions.

    ALiBi stays with `CausalAttention`: Transformer Engine would take its bias as a full matrix. So do models that
    must know where documents begin.

    Under context parallelism its ring passes keys and values on from rank to rank while it computes (`cp_comm_type`
    "p2p"); megatron-core gives it the group and a stream. It has kernels for that in half precision only.

    Args:
        config: megatron-core's config.
        positions: without ALiBi and without documents.
        **rest: what megatron-core passes to every core attention.
    """

    def __init__(self, config: TransformerConfig, positions: Positions, **rest: object) -> None:
        super().__init__()
        from megatron.core.extensions.transformer_engine import TEDotProductAttention

        assert not (positions.alibi or positions.reads_documents), "layer_spec gives these to CausalAttention"
        self.positions = positions
        self.context = context_group(rest.get("pg_collection"))
        # not a submodule: it has no parameters, and its fp8 bookkeeping is no part of our checkpoints
        object.__setattr__(self, "kernel", TEDotProductAttention(config=config, **rest))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object) -> Tensor:
        """Attend; shapes and result as in `CausalAttention.forward`."""
        places, length = None, None
        if self.context is not None and self.positions.rotary is not None:
            length = self.context.size() * len(query)
            places = places_of_part(length, self.context.rank(), self.context.size(), query.device)
        query, key = self.positions.turned(query, key, places=places, length=length)
        self.kernel.train(self.training)
        return self.kernel(query, key, value, attention_mask, attn_mask_type=AttnMaskType.causal)
