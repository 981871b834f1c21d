"""A layer whose attention and feed-forward block read one norm side by side, as in CodeGen and MOSS."""

from __future__ import annotations

from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor


class ParallelResidualLayer(TransformerLayer):
    """y = x + attention(norm(x)) + mlp(norm(x)), each branch with its bias and dropout.

    Takes the same submodules as megatron-core's layer; `pre_mlp_layernorm` must be left out, since the one
    `input_layernorm` serves both branches.

    Source: https://github.com/kingoflolz/mesh-transformer-jax (GPT-J), which CodeGen, arXiv:2203.13474, and MOSS
    follow.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **rest: object
    ) -> tuple[Tensor, None]:
        """Compute the layer. Collective over the tensor-parallel group.

        Args:
            hidden_states: `[s, b, h]` or `[s/tp, b, h]`.
            attention_mask: as in `CausalAttention.forward`.
            **rest: what megatron-core passes to every layer and ours do not use.

        Returns:
            The hidden states, same shape and dtype, and None in the place of a cross-attention context.
        """
        normal = self.input_layernorm(hidden_states)
        attended = self.self_attention(normal, attention_mask=attention_mask)
        if self.recompute_mlp:
            fed_forward = tensor_parallel.checkpoint(self.mlp, False, normal)
        else:
            fed_forward = self.mlp(normal)
        with self.bias_dropout_add_exec_handler():
            add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
            out = add(attended, hidden_states, self.hidden_dropout)
            add = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
            out = add(fed_forward, out, self.hidden_dropout)
        # as megatron-core's layer does: full recomputation and the pipeline refuse views
        return make_viewless_tensor(inp=out, requires_grad=out.requires_grad, keep_graph=True), None
