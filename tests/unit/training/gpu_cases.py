"""The models, layouts and ranks of which one training step is run without a GPU; real flags, few layers."""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.config import RunConfig, load_run_config

VOCAB_SIZE = 100
COMMON = (
    f"--tokenizer-type NullTokenizer --vocab-size {VOCAB_SIZE - 1} --data-path unread --seq-length 16 "
    "--micro-batch-size 1 --train-iters 4 --lr 1e-3 --make-vocab-size-divisible-by 8 --num-workers 0 --device cuda "
    "--hidden-size 64 --ffn-hidden-size 128 --hidden-dropout 0 --attention-dropout 0 --eval-iters 0"
)
UNTIED = "--untie-embeddings-and-output-weights"
LLAMA = f"--swiglu --normalization RMSNorm --disable-bias-linear {UNTIED}"
MODELS = {
    "llama": f"{LLAMA} --num-attention-heads 16 --num-query-groups 8 --kv-channels 8 --position-embedding-type rope",
    "baichuan2": f"{LLAMA} --num-attention-heads 8 --position-embedding-type alibi --norm-head "
    "--max-z-loss-weight 2e-4",
    "bloom": "--num-attention-heads 8 --position-embedding-type alibi --embedding-layernorm --openai-gelu",
    "gpt2": "--num-attention-heads 8",
    "moss": f"--num-attention-heads 8 --parallel-residual --disable-bias-linear --add-mlp-up-bias "
    f"--add-mlp-down-bias {UNTIED} --position-embedding-type rope --rotary-percent 0.5 --rotary-interleaved",
    "yuan": f"{LLAMA} --num-attention-heads 16 --num-query-groups 8 --kv-channels 8 --position-embedding-type rope "
    "--localized-filtering",
    # biases, scaled frequencies, one key/value head for several ranks
    "qwen": f"{LLAMA} --num-attention-heads 16 --num-query-groups 2 --kv-channels 8 --add-qkv-bias "
    "--position-embedding-type rope --rope-scaling-type ntk --rope-scaling-factor 2",
    "telechat": f"{LLAMA} --num-attention-heads 8 --position-embedding-type rope --add-attention-output-bias "
    "--add-mlp-down-bias --embedding-multiplier 4 --logits-multiplier 0.5",
}

TP, PP, CP = "--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size"
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


class Layout(NamedTuple):
    """A world and its flags; the ranks are the first, one in the middle of the pipeline, and the last."""

    world_size: int
    flags: str
    ranks: tuple[int, ...]


LAYOUTS = {
    "1": Layout(1, "--num-layers 2 --global-batch-size 2", (0,)),
    "1 recompute": Layout(1, f"--num-layers 2 --global-batch-size 2 {RECOMPUTE}", (0,)),
    "8 tp sp": Layout(8, f"--num-layers 2 --global-batch-size 2 {TP} 8 --sequence-parallel", (0, 7)),
    "8 3d": Layout(8, f"--num-layers 2 --global-batch-size 4 {TP} 2 {PP} 2 --use-distributed-optimizer", (0, 7)),
    "8 cp": Layout(
        8,
        f"--num-layers 2 --global-batch-size 4 {TP} 2 --sequence-parallel {CP} 2 --use-distributed-optimizer",
        (0, 7),
    ),
    "64 cp": Layout(
        64,
        f"--num-layers 4 --global-batch-size 8 {TP} 2 {PP} 2 {CP} 4 --bf16 --recompute-granularity selective",
        (0, 20, 63),
    ),
    "64 vpp": Layout(
        64,
        f"--num-layers 8 --global-batch-size 8 {TP} 8 {PP} 4 --num-virtual-stages-per-pipeline-rank 2 --bf16",
        (0, 20, 63),
    ),
    "1024": Layout(
        1024,
        f"--num-layers 8 --global-batch-size 64 {TP} 8 {PP} 8 --use-distributed-optimizer --overlap-grad-reduce "
        "--overlap-param-gather --sequence-parallel --bf16 --ddp-bucket-size 3000",
        (0, 400, 1023),
    ),
}


class Case(NamedTuple):
    """One rank of one layout of one model."""

    model: str
    layout: str
    rank: int

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.model}, {self.layout}, rank {self.rank}"

    def run(self) -> RunConfig:
        """The resolved flags; they pass all rules."""
        layout = LAYOUTS[self.layout]
        return load_run_config(f"{COMMON} {MODELS[self.model]} {layout.flags}".split(), layout.world_size).run


CASES = [
    Case(model, layout, rank)
    for model in MODELS
    for layout, (_, _, ranks) in LAYOUTS.items()
    # all ranks for one model with untied and one with tied embeddings; for the others the last, which has the loss
    for rank in (ranks if model in {"llama", "bloom"} else ranks[-1:])
]
