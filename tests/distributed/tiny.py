"""Tiny models, their data and their layouts: what the multi-process tests train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_ext.config import RunConfig, load_run_config
from megatron_ext.data.store.indexed_writer import write_indexed

VOCAB_SIZE = 101  # odd: every layout pads it, to different sizes

COMMON = (
    "--seq-length 32 --global-batch-size 4 --micro-batch-size 2 --lr 2e-3 --min-lr 2e-4 --lr-decay-style cosine "
    "--lr-warmup-iters 4 --train-iters 50 --weight-decay 0.1 --adam-beta2 0.95 --make-vocab-size-divisible-by 8 "
    f"--tokenizer-type NullTokenizer --vocab-size {VOCAB_SIZE - 1} --split 90,10,0 --eval-iters 2 --num-workers 0 "
    "--device cpu"
)
LLAMA = (
    "--num-layers 4 --hidden-size 48 --ffn-hidden-size 72 --swiglu --normalization RMSNorm --disable-bias-linear "
    "--untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0"
)
GPT2 = "--num-layers 4 --hidden-size 48 --num-attention-heads 6 --hidden-dropout 0 --attention-dropout 0"
MODELS = {
    "rope": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope",
    "alibi": f"{LLAMA} --num-attention-heads 6 --position-embedding-type alibi",
    "gqa": f"{LLAMA} --num-attention-heads 12 --num-query-groups 4 --kv-channels 8 --position-embedding-type rope",
    # layers and heads for eight of everything
    "wide": f"{LLAMA} --num-layers 8 --num-attention-heads 8 --num-query-groups 2 --position-embedding-type rope",
    # fewer key/value heads than tensor-parallel ranks
    "two_groups": f"{LLAMA} --num-attention-heads 12 --num-query-groups 2 --kv-channels 8 "
    "--position-embedding-type rope --add-qkv-bias",
    "one_group": f"{LLAMA} --num-attention-heads 8 --num-query-groups 1 --kv-channels 8 "
    "--position-embedding-type alibi",
    # attention must know where documents begin, on every pipeline stage
    "isolated": f"{LLAMA} --num-attention-heads 12 --num-query-groups 4 --kv-channels 8 "
    "--position-embedding-type rope --reset-attention-mask",
    # weights at which the attention of a few steps is far from even, so that positions show; without and with restart
    "sharp": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope --init-method-std 0.2",
    "restarted": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope --init-method-std 0.2 "
    "--reset-position-ids",
    # ranks and micro-batches that learn different numbers of tokens
    "masked": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope --eod-mask-loss",
    # steps of 128 tokens: 6 with sequences of 8, 5 of 16, then of 32
    "lengthened": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope --init-method-std 0.2 "
    "--seq-length-warmup 8:700 16:700",
    # Baichuan 2's output layer and second loss
    "normed": f"{LLAMA} --num-attention-heads 6 --position-embedding-type alibi --norm-head --max-z-loss-weight 0.02",
    # a norm right after the embedding: on this rank's slice of the sequence, or before it is cut
    "bloom": f"{GPT2} --openai-gelu --embedding-layernorm --position-embedding-type alibi",
    "bloom_learned": f"{GPT2} --openai-gelu --embedding-layernorm",
    # noise on the embedding: on this rank's slice of the sequence, of cut samples, or before it is cut
    "noisy": f"{LLAMA} --num-attention-heads 6 --position-embedding-type rope --init-method-std 0.2 "
    "--neftune-noise-alpha 2 --seq-length-warmup 8:700 16:700",
    "noisy_learned": f"{GPT2} --openai-gelu --embedding-layernorm --neftune-noise-alpha 0.5",
    # attention and feed-forward block on one norm, neighbouring channels turn together, one bias a branch and a logit's
    "moss": f"{GPT2} --parallel-residual --disable-bias-linear --add-attention-output-bias --add-mlp-down-bias "
    "--add-output-layer-bias --openai-gelu --untie-embeddings-and-output-weights --position-embedding-type rope "
    "--rotary-percent 0.5 --rotary-interleaved --rope-scaling-type yarn --rope-scaling-factor 4 "
    "--original-max-position-embeddings 8",
    # queries and keys of the filtered sequence, in documents that do not see each other
    "yuan": f"{LLAMA} --num-attention-heads 12 --num-query-groups 4 --kv-channels 8 --position-embedding-type rope "
    "--localized-filtering --init-method-std 0.1 --reset-attention-mask",
    # Megatron-LM's defaults: LayerNorm, GELU, biases, learned positions, tied embeddings
    "gpt2": GPT2,
    "multiplied": f"{GPT2} --embedding-multiplier 4 --logits-multiplier 1.7",
}

TP, PP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size"
CP = "--context-parallel-size"
VPP = "--num-virtual-stages-per-pipeline-rank"
OVERLAP = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 20000"
SINGLE = "--micro-batch-size 1"
LAYOUTS: dict[int, dict[str, str]] = {
    1: {
        "recompute full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "recompute selective": "--recompute-granularity selective",
        "recompute modules": "--recompute-granularity selective --recompute-modules core_attn mlp",
        "micro-batch 1": SINGLE,
        "micro-batch 4": "--micro-batch-size 4",
    },
    2: {
        "tp2": f"{TP} 2",
        "tp2 sp": f"{TP} 2 --sequence-parallel",
        "pp2": f"{PP} 2",
        "pp2 vpp2": f"{PP} 2 {VPP} 2 {SINGLE}",
        "cp2": f"{CP} 2",
        "dp2": "",
        "dp2 distopt": f"--use-distributed-optimizer {SINGLE}",
        "dp2 overlap": f"--overlap-grad-reduce --ddp-bucket-size 20000 {SINGLE}",
        "dp2 distopt overlap": f"--use-distributed-optimizer {OVERLAP}",
    },
    4: {
        "tp2 pp2": f"{TP} 2 {PP} 2",
        "tp2 sp pp2 vpp2": f"{TP} 2 --sequence-parallel {PP} 2 {VPP} 2",
        "tp2 sp dp2 distopt": f"{TP} 2 --sequence-parallel --use-distributed-optimizer",
        "pp2 dp2 distopt": f"{PP} 2 --use-distributed-optimizer {SINGLE}",
        "pp4": f"{PP} 4 {SINGLE}",
        "dp4": SINGLE,
        "dp4 distopt": f"--use-distributed-optimizer {SINGLE}",
    },
}
"""Processes -> name -> flags. 6 heads are no power of two and do not divide by 4, so tp4 is left to `gqa`."""
TP4 = {"tp4": f"{TP} 4"}
SHARED_HEADS = {
    2: {"tp2": f"{TP} 2", "tp2 sp": f"{TP} 2 --sequence-parallel"},
    4: {"tp4": f"{TP} 4", "tp4 sp": f"{TP} 4 --sequence-parallel"},
}
"""Processes -> name -> flags for the models with one and with two key/value heads."""
UNEVEN = {
    2: {
        "pp2 1+3": f"{PP} 2 --decoder-first-pipeline-num-layers 1",
        "pp2 vpp3 counted": f"{PP} 2 {VPP} 3 --account-for-embedding-in-pipeline-split "
        f"--account-for-loss-in-pipeline-split {SINGLE}",
        "pp2 vpp2 layout": f"{PP} 2 --pipeline-model-parallel-layout Et|tt||tL {SINGLE}",
    },
    4: {
        "pp4 layout": f"{PP} 4 --pipeline-model-parallel-layout E|t*3|t|L {SINGLE}",
        "tp2 sp pp2 3+1": f"{TP} 2 --sequence-parallel {PP} 2 --decoder-last-pipeline-num-layers 1",
        "pp2 vpp2 layout dp2 distopt overlap": f"{PP} 2 --pipeline-model-parallel-layout Et|tt||tL "
        f"--use-distributed-optimizer {OVERLAP} {SINGLE}",
    },
}
"""Processes -> name -> flags that deal 4 layers out unequally, down to chunks of embedding, head or nothing alone."""
CP4 = {
    "tp2 sp cp2": f"{TP} 2 --sequence-parallel {CP} 2",
    "cp2 pp2 vpp2": f"{CP} 2 {PP} 2 {VPP} 2 {SINGLE} --recompute-granularity selective",
    "cp2 dp2 distopt": f"{CP} 2 --use-distributed-optimizer",
    "cp4": f"{CP} 4",
}
"""Four processes, two or four of them on each sequence."""
TIED4 = {
    "dp4 distopt, 2 instances": f"--use-distributed-optimizer --num-distributed-optimizer-instances 2 {SINGLE}",
    "dp4 distopt overlap, 2 instances": "--use-distributed-optimizer --num-distributed-optimizer-instances 2 "
    f"{OVERLAP} {SINGLE}",
    "tp2 dp2 distopt, 2 instances": f"{TP} 2 --use-distributed-optimizer --num-distributed-optimizer-instances 2",
    "pp2 vpp2 dp2 distopt overlap": f"{PP} 2 {VPP} 2 --use-distributed-optimizer {OVERLAP} {SINGLE}",
}
"""Tied embeddings get a bucket of their own and are summed over stages besides, so these are for such a model."""


def write_dataset(prefix: Path, documents: int = 300, seed: int = 0) -> None:
    """Write documents with something to learn: each counts upwards by its own step, modulo the vocabulary."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        length, start, stride = generator.integers((20, 0, 1), (90, VOCAB_SIZE - 1, 4))
        texts.append(np.append((start + stride * np.arange(length)) % (VOCAB_SIZE - 1), VOCAB_SIZE - 1))
    write_indexed(prefix, texts, np.uint16)


def tiny_run(model: str, flags: str, world_size: int, data: Path) -> RunConfig:
    """Return the configuration of one tiny run; later flags win."""
    words = f"{COMMON} {MODELS[model]} --data-path {data} {flags}".split()
    return load_run_config(_last_wins(words), world_size).run


def _last_wins(words: list[str]) -> list[str]:
    """Keep the last value of every flag, so that a case can override a common one."""
    values: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            values[word] = []
            current = values[word]
        else:
            current.append(word)
    return [part for flag, rest in values.items() for part in (flag, *rest)]
