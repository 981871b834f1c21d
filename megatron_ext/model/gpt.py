"""The one builder: a RunConfig to this rank's GPTModel chunks."""

from __future__ import annotations

import functools

from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.config.to_core import transformer_config
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.counts import padded_vocab_size
from megatron_ext.model.cross_entropy import vocab_parallel_cross_entropy
from megatron_ext.model.init import initialize_parameters
from megatron_ext.model.norm import NORMS
from megatron_ext.model.te_attention import TransformerEngineAttention, has_transformer_engine


class PretrainGPT(GPTModel):
    """megatron-core's GPTModel whose loss leaves the padded vocabulary out of the softmax.

    `forward(tokens, position_ids, document_starts, labels=labels)` returns fp32 losses `[b, s]` on the last stage
    (logits `[b, s, v_padded/tp]` without labels) and hidden states `[s, b, h]` elsewhere. `document_starts` takes the
    place of megatron-core's attention mask and is what `CausalAttention.forward` says: None for most models.

    Args:
        true_vocab_size: number of tokens without padding.
        **core: GPTModel's own arguments.
    """

    def __init__(self, *, true_vocab_size: int, **core: object) -> None:
        super().__init__(**core)
        self.true_vocab_size = true_vocab_size

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the loss of every token, fp32 `[b, s]`.

        Args:
            labels: int64 `[b, s]`.
            logits: `[s, b, v_padded/tp]`; collective over the tensor-parallel group.
        """
        loss = vocab_parallel_cross_entropy(logits, labels.transpose(0, 1), self.true_vocab_size, self.pg_collection.tp)
        return loss.transpose(0, 1).contiguous()


def build_model(run: RunConfig, vocab_size: int, device: str) -> list[PretrainGPT]:
    """Build and initialise the model chunks of this pipeline rank: one, or one per virtual stage.

    Every rank calls it (embeddings tied over two stages are summed over both). The weights depend on the seed and
    the model only, never on the layout (law L1).

    Args:
        run: the model, the layout, the seed.
        vocab_size: number of tokens the tokenizer knows; the embedding is padded from here.
        device: `cpu` or `cuda`.
    """
    core = transformer_config(run, device)
    virtual = run.virtual_pipeline_model_parallel_size
    stages: list[int | None] = [None] if virtual is None else list(range(virtual))
    spec = layer_spec(run, device)
    chunks = [_build_chunk(run, core, spec, vocab_size, stage) for stage in stages]
    for chunk in chunks:
        initialize_parameters(chunk, run)
        if device == "cuda":
            chunk.cuda()
    return chunks


def layer_spec(run: RunConfig, device: str) -> ModuleSpec:
    """Return the module tree of one transformer layer: megatron-core's, with our norm and core attention."""
    norm = NORMS[run.model.normalization]
    positions = positions_of(run)
    ours = positions.alibi or positions.reads_documents
    on_engine = device == "cuda" and has_transformer_engine() and not ours
    attention = functools.partial(TransformerEngineAttention if on_engine else CausalAttention, positions=positions)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=SelfAttention,
                params={"attn_mask_type": AttnMaskType.causal},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=ColumnParallelLinear, core_attention=attention, linear_proj=RowParallelLinear
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
            ),
            mlp_bda=get_bias_dropout_add,
        ),
    )


def positions_of(run: RunConfig) -> Positions:
    """Return what attention does about positions and documents; learned positions are added to the embedding instead.

    ALiBi has no position to begin again (see `Positions`), and isolated documents need it for learned ones only.
    """
    model, data = run.model, run.data
    isolate = data.reset_attention_mask
    if model.position_embedding_type == "rope":
        restart = data.reset_position_ids and not isolate
        return Positions(False, model.rotary_base, model.rotary_percent, isolate, restart)
    return Positions(alibi=model.position_embedding_type == "alibi", isolate=isolate)


def _build_chunk(
    run: RunConfig, core: TransformerConfig, spec: ModuleSpec, vocab_size: int, stage: int | None
) -> PretrainGPT:
    model = run.model
    num_layers = get_num_layers_to_build(core, vp_stage=stage)
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage)
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
    learned = model.position_embedding_type == "learned_absolute"
    chunk = PretrainGPT(
        true_vocab_size=vocab_size,
        config=core,
        transformer_layer_spec=TransformerBlockSubmodules(
            layer_specs=[spec] * num_layers, layer_norm=NORMS[model.normalization]
        ),
        vocab_size=padded_vocab_size(run, vocab_size),
        max_sequence_length=model.max_position_embeddings or run.train.seq_length,
        pre_process=first,
        post_process=last,
        parallel_output=True,
        share_embeddings_and_output_weights=not model.untie_embeddings_and_output_weights,
        # RoPE and ALiBi are our core attention's business
        position_embedding_type="learned_absolute" if learned else "none",
        vp_stage=stage,
    )
    if learned and first:
        # the only parameter that megatron-core leaves in fp32 (its Float16Module casts it later)
        chunk.embedding.position_embeddings.to(core.params_dtype)
    return chunk
