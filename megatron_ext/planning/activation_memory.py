"""Bytes of activations that one rank saves for the backward pass: closed forms, no torch.

arXiv:2205.05198, section 4, counts sbh (34 + 5as/h) bytes for a half-precision layer with GELU, dropout and
materialised attention scores. The layers here differ (SwiGLU or GELU, RMSNorm or LayerNorm, grouped queries, an
attention that saves a sum per row in place of the scores), so every term is counted anew; its name says what is
saved, its comment why. Tensors that all layers and micro-batches share (RoPE's tables, ALiBi's bias) are
`shared_bytes`. Isolated documents (`--reset-attention-mask`) are padded, which depends on them: there the forms are
the most that can be. Not counted: parameters, what a kernel needs while it runs, indices of packed documents (24 bytes
a token, whatever the model). Our own kernels of a CPU (`model/native_attention.py`) keep less: neither rotated queries
and keys nor packed documents nor anything shared; PyTorch's on a CPU keep a mask for each chunk of a sequence that
ranks share.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from megatron_ext.config import RunConfig
from megatron_ext.model.counts import padded_vocab_size
from megatron_ext.model.document_rows import SHORTEST_SHARE

FP32 = 4
INT64 = 8
BOOL = 1

Terms = dict[str, int]
"""What is saved, to its bytes."""


@dataclass(frozen=True)
class Sizes:
    """What a rank holds of one micro-batch; `element` is the compute type's size in bytes, the rest are counts.

    Attributes:
        tokens: t = s/cp x b.
        sequences: s x b, the keys and values that ranks of a sequence gather.
        stream: tokens of the residual stream: t, or t/tp under sequence parallelism.
        hidden: h.
        query: np * hn / tp.
        key_value: ng * hn / tp, of keys or of values; one head where ranks share them.
        heads: np / tp.
        head_size: hn.
        ffn: f / tp.
        element: 2 or 4.
    """

    tokens: int
    sequences: int
    stream: int
    hidden: int
    query: int
    key_value: int
    heads: int
    head_size: int
    ffn: int
    element: int

    @classmethod
    def of(cls, run: RunConfig) -> Sizes:
        """The sizes of `run`, which passes the rules."""
        model, tp = run.model, run.parallel.tensor_model_parallel_size
        sequences = (run.train.seq_length or 0) * (run.train.micro_batch_size or 1)
        tokens = sequences // run.parallel.context_parallel_size
        return cls(
            tokens=tokens,
            sequences=sequences,
            stream=tokens // tp if run.parallel.sequence_parallel else tokens,
            hidden=model.hidden_size or 0,
            query=model.heads * model.head_dim // tp,
            key_value=max(1, model.query_groups // tp) * model.head_dim,
            heads=model.heads // tp,
            head_size=model.head_dim,
            ffn=model.ffn_size // tp,
            element=2 if run.train.bf16 or run.train.fp16 else 4,
        )

    @property
    def residual(self) -> int:
        """Bytes of one tensor `[s, b, h]` of the residual stream."""
        return self.stream * self.hidden * self.element


def layer_bytes(run: RunConfig, recompute: bool = True) -> int:
    """Bytes that one layer saves of one micro-batch; all of them, or without what `run` recomputes selectively."""
    modules = selectively_recomputed(run) if recompute else frozenset()
    return sum(layer_terms(run, modules).values())


def layer_terms(run: RunConfig, recomputed: frozenset[str] = frozenset()) -> Terms:
    """Return what one layer saves of one micro-batch.

    Args:
        run: settings that pass the rules.
        recomputed: of `core_attn` and `mlp`, what the backward pass computes again.
    """
    sizes, model = Sizes.of(run), run.model
    terms = _norm(run, sizes, "input") | _attention(run, sizes, "core_attn" in recomputed)
    if not model.parallel_residual:  # there one norm serves both branches
        terms |= _norm(run, sizes, "feed-forward")
    if "mlp" not in recomputed:
        terms |= _feed_forward(run, sizes)
    if model.hidden_dropout:
        # a mask of one byte per element after attention and after feed-forward
        terms["dropout masks"] = 2 * sizes.stream * sizes.hidden * BOOL
    return terms


def selectively_recomputed(run: RunConfig) -> frozenset[str]:
    """The modules of a layer that `--recompute-granularity selective` computes again."""
    if run.train.recompute_granularity != "selective":
        return frozenset()
    return frozenset(run.train.recompute_modules or ("core_attn",))


def _norm(run: RunConfig, sizes: Sizes, name: str) -> Terms:
    # the norm saves its input (which is the residual stream) and its statistics in fp32: 1/rms, or mean and 1/std;
    # its output is the input of a product, whose weight's gradient needs it
    statistics = 1 if run.model.normalization == "RMSNorm" else 2
    return {
        f"{name} norm: input": sizes.residual,
        f"{name} norm: statistics": sizes.stream * statistics * FP32,
        f"{name} norm: output": sizes.residual,
    }


def _attention(run: RunConfig, sizes: Sizes, recomputed: bool) -> Terms:
    model, per_token = run.model, sizes.tokens * sizes.element
    queries, keys = sizes.query * per_token, sizes.key_value * per_token
    rotary = model.position_embedding_type == "rope"
    # heads of several groups cannot be viewed as one dimension: unless they are rotated, the queries are a copy
    several = sizes.head_size < sizes.key_value < sizes.query
    copied = {"query, regrouped": queries} if several else {}
    filtered = _filter(run, sizes) if model.localized_filtering else {}
    # what a projection makes is kept whole, since the values, or the queries, are a view of it; the output is kept by
    # the attention kernel and, as the same memory, by the output projection
    terms = filtered | {"query, key, value": queries + 2 * keys, "attention output": queries}
    if recomputed:
        return terms | copied
    # in place of the scores: the logarithm of the sum of exponentials of every row (arXiv:2205.14135, algorithm 1)
    sums = {"log-sum-exp": sizes.tokens * sizes.heads * FP32}
    if run.parallel.context_parallel_size > 1:
        # rotated keys are gathered, and not kept themselves; each kernel keeps its chunk's output besides
        own = {"query, rotated": queries} if rotary else copied or {"query, key, value": terms["query, key, value"]}
        everyone = {"keys and values, gathered": 2 * sizes.key_value * sizes.sequences * sizes.element}
        return filtered | own | everyone | {"attention output": 2 * queries} | sums
    if run.data.reset_attention_mask:
        slots = math.ceil(sizes.tokens / SHORTEST_SHARE)
        packed = slots * (2 * sizes.query + 2 * sizes.key_value) * sizes.element
        sums = {"log-sum-exp": slots * sizes.heads * FP32}
        return filtered | {"query, key, value and output by document": packed, "attention output": queries} | sums
    if not rotary:
        return terms | copied | sums
    # where queries and keys have a product of their own, as filtered ones do, only the values keep theirs
    projected = {"query, key, value": keys} if filtered else {}
    return terms | projected | {"query and key, rotated": queries + keys} | sums


def _filter(run: RunConfig, sizes: Sizes) -> Terms:
    """Of localized filtering: what its norm and its second product keep, and rows of the projection's weight."""
    channels = sizes.hidden // run.parallel.tensor_model_parallel_size
    terms = {"filter: pairs of tokens": sizes.tokens * channels * sizes.element}
    if sizes.key_value > sizes.head_size:  # rows of several groups are copied to be one matrix
        terms["filter: rows of weights"] = (sizes.query + 2 * sizes.key_value) * sizes.hidden * sizes.element
    if run.data.reset_attention_mask:
        terms["filter: which tokens are first"] = sizes.tokens * BOOL
    return terms | _norm(run, sizes, "filter")


def _feed_forward(run: RunConfig, sizes: Sizes) -> Terms:
    width = sizes.tokens * sizes.ffn * sizes.element
    if run.model.swiglu:
        # what model/swiglu.py keeps, and its output, which is the input of the last projection
        return {"gate and up": 2 * width, "feed-forward output": width}
    # GELU saves its input; its output is the input of the last projection
    return {"gelu input": width, "feed-forward output": width}


def embedding_terms(run: RunConfig) -> Terms:
    """Return what the embedding saves of one micro-batch on the first stage."""
    sizes, model = Sizes.of(run), run.model
    learned = model.position_embedding_type == "learned_absolute"
    terms = {"token ids": sizes.tokens * INT64}
    if run.parallel.tensor_model_parallel_size > 1:
        terms["rows of other ranks"] = sizes.tokens * BOOL
    if learned:
        terms["position ids"] = sizes.tokens * INT64
    if model.embedding_layernorm:
        # before learned positions the sequence is whole
        tokens = sizes.tokens if learned else sizes.stream
        statistics = 1 if model.normalization == "RMSNorm" else 2
        terms["embedding norm"] = tokens * (sizes.hidden * sizes.element + statistics * FP32)
    if model.hidden_dropout:
        terms["dropout mask"] = sizes.stream * sizes.hidden * BOOL
    return terms


def head_terms(run: RunConfig, vocab_size: int) -> Terms:
    """Return what final norm, output layer and loss save of one micro-batch on the last stage.

    Args:
        run: settings that pass the rules.
        vocab_size: number of tokens the tokenizer knows.
    """
    sizes = Sizes.of(run)
    rows = padded_vocab_size(run, vocab_size) // run.parallel.tensor_model_parallel_size
    terms = _norm(run, sizes, "final")
    terms["loss mask"] = sizes.tokens * FP32
    if run.train.fuses_loss:
        # the forward pass computes these gradients and keeps nothing else
        del terms["final norm: output"]
        # in the order of the hidden states, which is the mask's own where the micro-batch is one sample
        terms["counts"] = sizes.tokens * FP32 if run.train.micro_batch_size != 1 else 0
        terms["gradient of hidden states"] = sizes.tokens * sizes.hidden * sizes.element
        terms["gradient of the output layer"] = rows * (sizes.hidden + run.model.add_output_layer_bias) * FP32
        if run.model.norm_head:
            terms["lengths of rows"] = rows * FP32
        return terms
    terms["logits"] = sizes.tokens * rows * sizes.element
    # of the cross entropy, which computes the softmax again: log-sum-exp, the label's column and whether it is here
    terms["cross entropy"] = sizes.tokens * (FP32 + INT64 + BOOL)
    if run.train.max_z_loss_weight:
        terms["largest logits and their places"] = sizes.tokens * (FP32 + INT64)
    if run.model.norm_head:
        # the normalised weight is a result, not a parameter; with it the lengths of its rows
        terms["normalised rows"] = rows * (sizes.hidden * sizes.element + FP32)
    return terms


def shared_bytes(run: RunConfig) -> int:
    """Bytes of what all layers and micro-batches of a rank share: RoPE's tables or ALiBi's bias."""
    sizes, length, cp = Sizes.of(run), run.train.seq_length or 0, run.parallel.context_parallel_size
    if run.model.position_embedding_type == "rope":
        return 0 if _restarts(run) else length // cp * _rotary_row(run)
    alibi = run.model.position_embedding_type == "alibi"
    return sizes.heads * _scores(length, cp) * FP32 if alibi and not _masks_documents(run) else 0


def micro_batch_bytes(run: RunConfig) -> int:
    """Bytes that all layers share of one micro-batch: RoPE's rows where places restart, masks of shared documents."""
    sizes, samples = Sizes.of(run), run.train.micro_batch_size or 1
    rows = sizes.tokens * _rotary_row(run) if _restarts(run) else 0
    if not _masks_documents(run):
        return rows
    scores = samples * _scores(run.train.seq_length or 0, run.parallel.context_parallel_size)
    alibi = run.model.position_embedding_type == "alibi"
    return rows + scores * (sizes.heads * FP32 if alibi else sizes.element)


def _restarts(run: RunConfig) -> bool:
    restart = run.data.reset_position_ids and not run.data.reset_attention_mask
    return run.model.position_embedding_type == "rope" and restart


def _rotary_row(run: RunConfig) -> int:
    """Bytes of the cosines and sines of one place."""
    rotated = int(run.model.head_dim * run.model.rotary_percent)
    return 2 * (rotated // 2) * Sizes.of(run).element


def _masks_documents(run: RunConfig) -> bool:
    return run.data.reset_attention_mask and run.parallel.context_parallel_size > 1


def _scores(length: int, cp: int) -> int:
    """Of how many queries and keys a rank has a bias; its chunks, r and 2 cp - 1 - r, see keys up to their own ends."""
    chunk = length // (2 * cp)
    return length**2 if cp == 1 else chunk**2 * (2 * cp + 1)


def chunk_bytes(run: RunConfig, vocab_size: int, stage: int, chunk: int = 0) -> int:
    """Bytes that one model chunk saves of one micro-batch.

    Args:
        run: settings that pass the rules.
        vocab_size: number of tokens the tokenizer knows.
        stage: pipeline rank.
        chunk: model chunk of that rank; 0 without the interleaved schedule.
    """
    chunks = run.virtual_pipeline_model_parallel_size or 1
    first = stage == 0 and chunk == 0
    last = stage == run.parallel.pipeline_model_parallel_size - 1 and chunk == chunks - 1
    total = layers_bytes(run, run.layers_per_chunk[stage][chunk])
    total += micro_batch_bytes(run) if _records_attention(run) else 0
    total += sum(embedding_terms(run).values()) if first else 0
    return total + (sum(head_terms(run, vocab_size).values()) if last else 0)


def layers_bytes(run: RunConfig, layers: int) -> int:
    """Bytes that so many layers of one chunk save of one micro-batch, with the recomputation that `run` asks for.

    Full recomputation keeps the input of each group of layers (uniform), or of each of the first layers (block).
    Source: arXiv:2205.05198, section 5.
    """
    train, whole = run.train, layer_bytes(run)
    if train.recompute_granularity != "full":
        return layers * whole
    count, kept = train.recompute_num_layers or 1, Sizes.of(run).residual
    if train.recompute_method == "uniform":
        return -(-layers // count) * kept
    return min(count, layers) * kept + max(0, layers - count) * whole


def recomputed_bytes(run: RunConfig) -> int:
    """Bytes that come back for a while when the backward pass computes a group of layers, or a module, again."""
    train = run.train
    if train.recompute_granularity == "full":
        count = train.recompute_num_layers or 1 if train.recompute_method == "uniform" else 1
        again = min(count, max(map(max, run.layers_per_chunk))) * layer_bytes(run)
    else:
        again = layer_bytes(run, recompute=False) - layer_bytes(run)
    return again + (0 if _records_attention(run) else micro_batch_bytes(run))


def _records_attention(run: RunConfig) -> bool:
    """Whether the forward pass itself saves what attention needs, in some layer."""
    if run.train.recompute_granularity == "full":
        return run.train.recompute_method == "block"
    return "core_attn" not in selectively_recomputed(run)


def chunks_in_flight(run: RunConfig, stage: int) -> Counter[int]:
    """How many micro-batches of each chunk of a pipeline rank wait for their backward pass at once, at most.

    1F1B runs pp - stage - 1 forward passes before it alternates; the interleaved schedule, whose chunks take turns
    every pp micro-batches, 2 (pp - stage - 1) + (vpp - 1) pp. One more is on its way.
    Source: arXiv:2104.04473, section 2.2; megatron-core 0.16.1 schedules.py (get_pp_rank_microbatches).
    """
    pp, chunks = run.parallel.pipeline_model_parallel_size, run.virtual_pipeline_model_parallel_size or 1
    ahead = pp - stage - 1
    warm_up = ahead if chunks == 1 else 2 * ahead + (chunks - 1) * pp
    forwards = min(warm_up + 1, run.num_microbatches * chunks)
    return Counter(forward // pp % chunks for forward in range(forwards))


def peak_bytes(run: RunConfig, vocab_size: int, stage: int) -> int:
    """Bytes of activations that a pipeline rank holds at once, at most: all in flight, what is recomputed, the shared.

    Args:
        run: settings that pass the rules.
        vocab_size: number of tokens the tokenizer knows.
        stage: pipeline rank.
    """
    in_flight = chunks_in_flight(run, stage)
    saved = sum(count * chunk_bytes(run, vocab_size, stage, chunk) for chunk, count in in_flight.items())
    return saved + recomputed_bytes(run) + shared_bytes(run)
