"""How long, how much at a time, in which precision."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Batches, length of the run, evaluation, precision, recomputation."""

    seq_length: int | None = knob(None, "length of a training sequence, s", unit="tokens", bounds="[1, inf)")
    seq_length_warmup: tuple[str, ...] | None = knob(
        None,
        "LENGTH:TOKENS LENGTH:TOKENS ...: cut the samples of the first TOKENS tokens into sequences of LENGTH, a "
        "divisor of --seq-length, those of the next TOKENS into longer ones, and so on; as in 512:2e9 1024:2e9",
    )
    micro_batch_size: int | None = knob(
        None, "sequences in one forward pass of a data-parallel rank, b", unit="samples", bounds="[1, inf)"
    )
    global_batch_size: int | None = knob(
        None,
        "sequences in one optimizer step; absent: --micro-batch-size x data-parallel size",
        unit="samples",
        bounds="[1, inf)",
    )
    rampup_batch_size: tuple[int, ...] | None = knob(
        None,
        "START INCREMENT SAMPLES: grow the global batch from START by INCREMENT over the first SAMPLES samples",
        unit="samples",
        bounds="[1, inf)",
        length=3,
    )
    train_iters: int | None = knob(None, "optimizer steps to train", unit="iterations", bounds="[1, inf)")
    train_samples: int | None = knob(
        None, "sequences to train on, the other way to say how long", unit="samples", bounds="[1, inf)"
    )
    train_tokens: int | None = knob(
        None,
        "tokens to train on, the third way to say how long; counted in whole samples of --seq-length",
        unit="tokens",
        bounds="[1, inf)",
    )
    exit_interval: int | None = knob(
        None, "save and exit when the iteration is a multiple of this", unit="iterations", bounds="[1, inf)"
    )
    exit_duration_in_mins: float | None = knob(None, "save and exit after this long", unit="minutes", bounds="(0, inf)")
    max_skipped_iterations: int = knob(
        100,
        "stop with an error, and without saving, when this many updates in a row were skipped (a loss or gradient that "
        "is no number, fp16 overflow, no learned token); 0 goes on for ever",
        unit="iterations",
        bounds="[0, inf)",
    )
    exit_signal_handler: bool = knob(True, "on SIGTERM finish the step, save and exit 0")
    seed: int = knob(1234, "seed of the weights, of dropout and of the sample order", bounds="[0, 4294967295]")
    eval_iters: int = knob(100, "batches of one evaluation; 0 does not evaluate", unit="batches", bounds="[0, inf)")
    eval_interval: int = knob(1000, "steps between evaluations", unit="iterations", bounds="[1, inf)")
    skip_train: bool = knob(False, "evaluate only")
    bf16: bool = knob(False, "compute in bfloat16, optimizer state in fp32")
    fp16: bool = knob(False, "compute in float16 with loss scaling, optimizer state in fp32")
    accumulate_allreduce_grads_in_fp32: bool = knob(
        False, "accumulate and reduce gradients in fp32 (always so with --bf16 and in fp32)"
    )
    max_z_loss_weight: float = knob(
        0.0,
        "what the loss gets per token besides the cross entropy: this times the square of its largest logit "
        "(Baichuan 2: 2e-4); logged apart, the lm loss stays the cross entropy",
        bounds="[0, inf)",
    )
    cross_entropy_loss_fusion: bool = knob(
        True,
        "compute output layer and loss together, some tokens at a time: logits never exist whole. It needs 4 bytes per "
        "element of the output layer's weight instead of 4 per token and entry of the vocabulary (half precision). "
        "Never with --fp16, whose loss scale must come before gradients are rounded",
        flag="--no-cross-entropy-loss-fusion",
    )
    gradient_accumulation_fusion: bool = knob(
        True,
        "on a GPU, let the product that computes a weight's gradient add it to the fp32 sum of the micro-batches; "
        "without, it is rounded to the compute type and added in a pass of its own",
        flag="--no-gradient-accumulation-fusion",
    )
    neftune_noise_alpha: float = knob(
        0.0,
        "NEFTune, in training only: add to each channel of the word embeddings a uniform number in [-1, 1] times this "
        "over sqrt(length of the sequence x hidden size)",
        bounds="[0, inf)",
    )
    recompute_granularity: str | None = knob(
        None,
        "recompute activations in the backward pass: whole layers, or chosen modules",
        choices=("full", "selective"),
    )
    recompute_method: str | None = knob(
        None,
        "with full recomputation: checkpoint groups of layers evenly, or the first layers of each stage",
        choices=("uniform", "block"),
    )
    recompute_num_layers: int | None = knob(
        None,
        "with full recomputation: layers in a group (uniform) or layers to recompute (block)",
        unit="layers",
        bounds="[1, inf)",
    )
    recompute_modules: tuple[str, ...] | None = knob(
        None, "with selective recomputation: what to recompute; absent: core_attn", choices=("core_attn", "mlp")
    )
    manual_gc: bool = knob(False, "collect Python garbage only when asked, at the same step on all ranks")
    manual_gc_interval: int = knob(
        0, "steps between collections with --manual-gc; 0 never collects", unit="iterations", bounds="[0, inf)"
    )

    @property
    def fuses_loss(self) -> bool:
        """Whether output layer and loss are computed together; in fp16 their gradients could overflow at any scale."""
        return self.cross_entropy_loss_fusion and not self.fp16
