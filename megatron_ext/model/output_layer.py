"""The output layer: a product, maybe with normalised rows, a multiplier, a bias; and the loss of its logits."""

from __future__ import annotations

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_ext.config import ModelConfig
from megatron_ext.model.linear_cross_entropy import Targets, linear_cross_entropy
from megatron_ext.model.norm_head import normalized_rows


class OutputLayer(ColumnParallelLinear):
    """logits = (multiplier * hidden) @ weight^T + bias, where each row of the weight may be divided by its length.

    megatron-core's layer in all else: vocabulary cut over the tensor-parallel ranks, sequence parallelism, a weight
    that is the layer's own or, with tied embeddings, the caller's. What is stored and trained is the weight as it is;
    it is normalised anew in every forward pass (NormHead). The bias, where there is one, is the layer's own also with
    tied embeddings; that of the padded rows is part of no loss and stays 0.

    Args:
        plain: the layer that GPTModel has built; its weight, with all its marks, becomes this layer's.
        model: `norm_head`, `logits_multiplier`, and `add_output_layer_bias`, which excludes the other two.
    """

    def __init__(self, plain: ColumnParallelLinear, model: ModelConfig) -> None:
        super().__init__(
            plain.input_size,
            plain.output_size,
            config=plain.config,
            init_method=plain.config.init_method,
            bias=model.add_output_layer_bias,
            gather_output=plain.gather_output,
            skip_weight_param_allocation=True,
            embedding_activation_buffer=plain.embedding_activation_buffer,
            grad_output_buffer=plain.grad_output_buffer,
            tp_group=plain.tp_group,
        )
        if plain.weight is not None:
            self.weight = plain.weight
        self.norm_head, self.multiplier = model.norm_head, model.logits_multiplier
        # the product's weight is not the parameter, so the kernel that adds to the parameter's gradient cannot serve
        self.gradient_accumulation_fusion = plain.gradient_accumulation_fusion and not self.norm_head

    def forward(
        self,
        input_: Tensor,
        weight: Tensor | None = None,
        runtime_gather_output: bool | None = None,
        targets: Targets | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute logits, or with `targets` the losses of logits that never exist whole (`linear_cross_entropy`).

        One way in for both: megatron-core waits before a module's forward for the weights that it gathers.
        The multiplier is applied to the hidden states, which are fewer than the logits; a power of two changes no
        bit but the exponent either way.

        Args:
            input_: `[s, b, h]`, `[s/tp, b, h]` under sequence parallelism. Collective over the tensor-parallel group.
            weight: `[v/tp, h]` of tied embeddings; else None.
            runtime_gather_output: overrides whether the ranks' logits are put together.
            targets: what the logits are scored on.

        Returns:
            Logits `[s, b, v/tp]`, and None in place of a bias; with `targets` losses and largest logits, fp32 `[s, b]`.
        """
        weight = self.weight if weight is None else weight
        hidden = input_ if self.multiplier == 1.0 else input_ * self.multiplier
        weight = normalized_rows(weight) if self.norm_head else weight
        if targets is None:
            return super().forward(hidden, weight, runtime_gather_output)
        spread = (
            gather_from_sequence_parallel_region if self.sequence_parallel else copy_to_tensor_model_parallel_region
        )
        hidden = spread(hidden, group=self.tp_group)
        return linear_cross_entropy(hidden, weight, self.bias, targets)
