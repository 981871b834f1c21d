"""The one builder: a RunConfig to this rank's GPTModel chunks."""

from __future__ import annotations

import dataclasses
import functools

from megatron.core import parallel_state
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.config.to_core import transformer_config
from megatron_ext.model.attention import CausalAttention, Positions
from megatron_ext.model.chosen_bias import column_parallel, row_parallel
from megatron_ext.model.counts import padded_vocab_size
from megatron_ext.model.cross_entropy import Scoring, cross_entropy_with_max_z, vocab_parallel_cross_entropy
from megatron_ext.model.embedding_noise import EmbeddingNoise
from megatron_ext.model.embedding_norm import add_embedding_norm
from megatron_ext.model.init import initialize_parameters
from megatron_ext.model.linear_cross_entropy import Targets
from megatron_ext.model.localized_filtering import FilteredSelfAttention
from megatron_ext.model.native_attention import NativeAttention
from megatron_ext.model.norm import norm_of
from megatron_ext.model.output_layer import OutputLayer
from megatron_ext.model.parallel_residual import ParallelResidualLayer
from megatron_ext.model.rotary_frequencies import Rotary
from megatron_ext.model.shared_heads import SharedHeadsAttention
from megatron_ext.model.swiglu import swiglu_of
from megatron_ext.model.te_attention import TransformerEngineAttention
from megatron_ext.model.weight_gradient import add_weight_gradients_in_products
from megatron_ext.platform.kernels import ENGINE, NATIVE, TORCH, choose_kernels


class PretrainGPT(GPTModel):
    """megatron-core's GPTModel with multipliers, NormHead and max-z loss; its loss leaves the padded vocabulary out.

    `forward(tokens, position_ids, document_starts, labels=labels)` returns fp32 losses `[b, s]` on the last stage
    (logits `[b, s, v_padded/tp]` without labels) and hidden states `[s, b, h]` elsewhere. With `loss_mask`, fp32
    `[b, s]`, these losses may be used in no other way than c * sum(losses * loss_mask), and no logits exist whole
    (`linear_cross_entropy`), but with `--no-cross-entropy-loss-fusion`. `document_starts` takes the place of
    megatron-core's attention mask and is what `CausalAttention.forward` says: None for most models.

    In training the losses carry the gradient of the max-z loss too; `largest_logits` then holds what it is made of,
    fp32 `[b, s]`, from the last forward pass of a last stage. None without that loss, and in evaluation.

    Args:
        run: the multipliers, NormHead, the weight of the max-z loss.
        true_vocab_size: number of tokens without padding.
        elementwise: whose kernels compute the losses, as in `Kernels`.
        **core: GPTModel's own arguments.
    """

    largest_logits: Tensor | None = None
    embedding_noise: EmbeddingNoise | None = None
    output_layer: OutputLayer

    def __init__(self, run: RunConfig, true_vocab_size: int, elementwise: str = TORCH, **core: object) -> None:
        super().__init__(**core)
        self.elementwise = elementwise
        self.true_vocab_size = true_vocab_size
        self.embedding_multiplier = run.model.embedding_multiplier
        self.max_z_loss_weight = run.train.max_z_loss_weight
        self.fuses_loss = run.train.fuses_loss
        if self.post_process:
            self.output_layer = OutputLayer(self.output_layer, run.model)

    def forward(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        decoder_input: Tensor | None = None,
        places: Tensor | None = None,
        **rest: object,
    ) -> Tensor:
        """Multiply the embedding's output, then go on as megatron-core does; see the class.

        `places`, int64 `[b]`, is how many samples of the run come before each one of the micro-batch; NEFTune needs it.
        """
        if self.embedding_noise is not None:
            self.embedding_noise.places = places
        if self.pre_process and decoder_input is None and self.embedding_multiplier != 1.0:
            decoder_input = self.embedding(input_ids=input_ids, position_ids=position_ids) * self.embedding_multiplier
        return super().forward(input_ids, position_ids, attention_mask, decoder_input, **rest)

    def _postprocess(
        self, hidden_states: Tensor, labels: Tensor | None, loss_mask: Tensor | None, **rest: object
    ) -> Tensor:
        """From the last layer to the losses: megatron-core's own way, but where output layer and loss are one."""
        if not (self.post_process and self.fuses_loss) or labels is None or loss_mask is None:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, loss_mask=loss_mask, **rest)
        weight = self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else None
        max_z_weight = self.max_z_loss_weight if self.training else 0.0
        labels, loss_mask = labels.transpose(0, 1), loss_mask.transpose(0, 1)
        scoring = Scoring(self.pg_collection.tp, max_z_weight, self.elementwise)
        targets = Targets(labels, loss_mask, self.true_vocab_size, scoring)
        loss, largest = self.output_layer(hidden_states, weight, targets=targets)
        self.largest_logits = largest.transpose(0, 1) if max_z_weight else None
        return loss.transpose(0, 1).contiguous()

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Return the loss of every token, fp32 `[b, s]`.

        Args:
            labels: int64 `[b, s]`.
            logits: `[s, b, v_padded/tp]`; collective over the tensor-parallel group.
        """
        group, labels, self.largest_logits = self.pg_collection.tp, labels.transpose(0, 1), None
        if self.training and self.max_z_loss_weight:
            loss, largest = cross_entropy_with_max_z(
                logits, labels, self.true_vocab_size, group, self.max_z_loss_weight, self.elementwise
            )
            self.largest_logits = largest.transpose(0, 1)
        else:
            loss = vocab_parallel_cross_entropy(logits, labels, self.true_vocab_size, group, self.elementwise)
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
    if core.gradient_accumulation_fusion:
        add_weight_gradients_in_products()
    virtual = run.virtual_pipeline_model_parallel_size
    stages: list[int | None] = [None] if virtual is None else list(range(virtual))
    spec = layer_spec(run, device)
    elementwise = choose_kernels(device, run.parallel.transformer_impl, run.parallel.compile).elementwise
    chunks = [_build_chunk(run, core, spec, vocab_size, stage, elementwise) for stage in stages]
    for chunk in chunks:
        initialize_parameters(chunk, run)
        if device == "cuda":
            chunk.cuda()
    return chunks


def layer_spec(run: RunConfig, device: str) -> ModuleSpec:
    """Return the module tree of one transformer layer: megatron-core's, with our norm and core attention."""
    kernels = choose_kernels(device, run.parallel.transformer_impl, run.parallel.compile)
    model, norm = run.model, norm_of(run.model, kernels)
    qkv_bias, output_bias, fc1_bias, fc2_bias = model.biased_projections
    positions = dataclasses.replace(positions_of(run), kernels=kernels.elementwise)
    ours = positions.alibi or positions.reads_documents
    # Transformer Engine shares a sequence between ranks in half precision only
    shares = run.parallel.context_parallel_size == 1 or run.train.bf16 or run.train.fp16
    on_engine = kernels.attention == ENGINE and shares and not ours
    plain = NativeAttention if kernels.attention == NATIVE else CausalAttention
    attention = functools.partial(TransformerEngineAttention if on_engine else plain, positions=positions)
    filtering = {"norm": norm, "isolate": positions.isolate} if model.localized_filtering else {}
    return ModuleSpec(
        module=ParallelResidualLayer if model.parallel_residual else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=FilteredSelfAttention if model.localized_filtering else SharedHeadsAttention,
                params={"attn_mask_type": AttnMaskType.causal, **filtering},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column_parallel(qkv_bias),
                    core_attention=attention,
                    linear_proj=row_parallel(output_bias),
                ),
            ),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=IdentityOp if model.parallel_residual else norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=column_parallel(fc1_bias),
                    # read with SwiGLU only (to_core)
                    activation_func=swiglu_of(kernels),
                    linear_fc2=row_parallel(fc2_bias),
                ),
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
        rotary = Rotary(model.rotary_base, model.rotary_percent, model.rotary_interleaved, model.rope_scaling)
        return Positions(rotary=rotary, isolate=isolate, restart=restart)
    return Positions(alibi=model.position_embedding_type == "alibi", isolate=isolate)


def _build_chunk(
    run: RunConfig, core: TransformerConfig, spec: ModuleSpec, vocab_size: int, stage: int | None, elementwise: str
) -> PretrainGPT:
    model = run.model
    num_layers = get_num_layers_to_build(core, vp_stage=stage)
    first = parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage)
    last = parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
    learned = model.position_embedding_type == "learned_absolute"
    norm = spec.submodules.input_layernorm
    chunk = PretrainGPT(
        run=run,
        true_vocab_size=vocab_size,
        elementwise=elementwise,
        config=core,
        transformer_layer_spec=TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=norm),
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
    if run.train.neftune_noise_alpha and first:
        alpha, seed = run.train.neftune_noise_alpha, run.train.seed
        chunk.embedding_noise = EmbeddingNoise(alpha, seed, chunk.embedding, chunk.pg_collection.cp)
    if model.embedding_layernorm and first:
        add_embedding_norm(chunk.embedding, norm)
    if learned and first:
        # the only parameter that megatron-core leaves in fp32 (its Float16Module casts it later)
        chunk.embedding.position_embeddings.to(core.params_dtype)
    return chunk
