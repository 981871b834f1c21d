"""Localized filtering attention (Yuan 2.0): queries and keys read each token together with the two before it.

filtered = norm(x + conv2(conv1(x))): two causal convolutions along the sequence, h -> h/2 -> h, with biases, each over
two tokens. Queries and keys are projections of `filtered`, values of `x` itself.

Source: arXiv:2311.15786, section 2.1; what stands before the first token is 0 for either convolution, as in the
published model's code.
"""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.layers import (
    linear_with_frozen_weight,
    linear_with_grad_accumulation_and_async_allreduce,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_ext.model.context_parallel import context_group, previous_tokens
from megatron_ext.model.document_attention import restarted_positions


class FilteredSelfAttention(SelfAttention):
    """megatron-core's self-attention whose queries and keys are made of filtered hidden states.

    `linear_qkv` keeps its name and layout; its rows of queries and keys multiply one input, those of values the other.

    Args:
        norm: class of the filter's norm.
        isolate: the filter does not look into the previous document either (`--reset-attention-mask`).
        **core: SelfAttention's own arguments.
    """

    def __init__(self, norm: type[torch.nn.Module], isolate: bool, **core: object) -> None:
        super().__init__(**core)
        self.isolate = isolate
        self.localized_filter = LocalizedFilter(self.config, norm, self.pg_collection)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, **rest: object
    ) -> tuple[Tensor, Tensor | None]:
        """Attend. Collective over the tensor-parallel and the context-parallel group.

        Args:
            hidden_states: `[s, b, h]` or `[s/tp, b, h]`, where s is s/cp of a rank that holds a part of each sequence.
            attention_mask: as in `CausalAttention.forward`.
            **rest: what megatron-core passes to every self-attention.

        Returns:
            The output projection, shaped as the input, and its bias, which is to be added.
        """
        filtered = self.localized_filter(hidden_states, attention_mask if self.isolate else None)
        # the argument that carries a second input to `get_query_key_value_tensors`
        return super().forward(hidden_states, attention_mask, **{**rest, "key_value_states": filtered})

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        output_gate: bool = False,
        split_qkv: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return query `[s, b, np/tp, hn]`, key and value `[s, b, ng/tp, hn]`.

        Args:
            hidden_states: what values are made of, `[s, b, h]` or `[s/tp, b, h]`.
            key_value_states: the filtered hidden states, same shape.
            output_gate: never asked for here.
            split_qkv: always asked for here.
        """
        assert key_value_states is not None and split_qkv and not output_gate
        size = self.hidden_size_per_attention_head
        weight = self.linear_qkv.weight.unflatten(0, (self.num_query_groups_per_partition, -1, size))
        bias = self.linear_qkv.bias
        biases = (None, None)
        if bias is not None:
            grouped = bias.unflatten(0, weight.shape[:3])
            biases = (grouped[:, :-1], grouped[:, -1:])
        mixed = self._project(key_value_states, weight[:, :-1], biases[0])
        value = self._project(hidden_states, weight[:, -1:], biases[1])
        return mixed[..., :-1, :].flatten(2, 3), mixed[..., -1, :], value[..., -1, :]

    def _project(self, x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        """`[s, b, h]` or `[s/tp, b, h]` times some heads' rows `[ng/tp, n, hn, h]` to `[s, b, ng/tp, n, hn]`."""
        layer, weight = self.linear_qkv, rows.flatten(0, 2)
        trained = layer.weight.requires_grad
        multiply = linear_with_grad_accumulation_and_async_allreduce if trained else linear_with_frozen_weight
        out = multiply(
            x,
            weight,
            None if bias is None else bias.flatten(),
            gradient_accumulation_fusion=False,
            allreduce_dgrad=layer.allreduce_dgrad,
            sequence_parallel=layer.sequence_parallel,
            tp_group=layer.tp_group,
        )
        return out.unflatten(-1, rows.shape[:3])


class LocalizedFilter(MegatronModule):
    """norm(x + conv2(conv1(x))), the channels between the convolutions cut over the tensor-parallel ranks.

    The convolutions are matrix products. Row 2c + i of `conv1.weight` `[h, h]` makes channel c of the token before
    (i = 0) or of the token itself (i = 1); column 2c + i of `conv2.weight` `[h, h]` reads channel c of that token. So
    either is a published convolution weight `[out, in, 2]` with its last two axes swapped or joined.

    The first product gathers a sequence that is cut over tensor-parallel ranks, so that a token's predecessor is at
    hand; where chunks of sequences lie on context-parallel ranks, either convolution asks the others for one token
    of each chunk.

    Args:
        config: megatron-core's.
        norm: a class of `NORMS`.
        groups: megatron-core's `pg_collection`: tensor-parallel, and context-parallel if there are such ranks.
    """

    def __init__(self, config: TransformerConfig, norm: type[torch.nn.Module], groups: ProcessGroupCollection) -> None:
        super().__init__(config)
        hidden, group = config.hidden_size, groups.tp
        self.context = context_group(groups)
        self.conv1 = _FirstConvolution(
            hidden,
            hidden,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=False,
            skip_bias_add=True,
            tp_group=group,
        )
        self.conv2 = RowParallelLinear(
            hidden,
            hidden,
            config=config,
            init_method=config.init_method,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=group,
        )
        self.norm = norm(config, hidden, eps=config.layernorm_epsilon)

    def forward(self, x: Tensor, document_starts: Tensor | None) -> Tensor:
        """Filter. Collective over the tensor-parallel and the context-parallel group.

        Args:
            x: `[s, b, h]` or `[s/tp, b, h]`, where s is s/cp of a rank that holds a part of each sequence.
            document_starts: int64 `[b, s]` of whole sequences, the place in its row at which each token's document
                begins: a document's first token has nothing before it. None for rows of one document.

        Returns:
            Shape and dtype of `x`.
        """
        inside = None if document_starts is None else self._inside(document_starts, x.device)
        taps, bias = self.conv1(x)
        before, now = taps.unflatten(-1, (-1, 2)).unbind(-1)
        hidden = self._previous(before, inside) + now + bias
        pairs = torch.stack([self._previous(hidden, inside), hidden], dim=-1).flatten(-2)
        return self.norm(x + self.conv2(pairs)[0])

    def _inside(self, document_starts: Tensor, device: torch.device) -> Tensor:
        """Return which of this rank's tokens are not the first of their document, bool `[s, b, 1]`."""
        part = None if self.context is None else (self.context.rank(), self.context.size())
        return restarted_positions(document_starts, device, part).gt(0)[..., None]

    def _previous(self, x: Tensor, inside: Tensor | None) -> Tensor:
        """Return each token's predecessor in `x` `[s, b, n]`; 0 before the first and where not `inside`."""
        shifted = previous_tokens(x, self.context)
        return shifted if inside is None else shifted * inside


class _FirstConvolution(ColumnParallelLinear):
    """A product whose neighbouring outputs 2c and 2c + 1 share one bias, `[h/2/tp]`, which the caller adds."""

    def __init__(self, *core: object, **named: object) -> None:
        super().__init__(*core, **named)
        size = self.output_size_per_partition // 2
        self.bias = torch.nn.Parameter(torch.empty(size, dtype=self.config.params_dtype, device=self.weight.device))
        set_tensor_model_parallel_attributes(self.bias, is_parallel=True, dim=0, stride=1)
        self.bias.allreduce = True
