"""The optimizer and its schedules."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Section):
    """Update rule, learning-rate and weight-decay schedules, clipping, loss scaling."""

    optimizer: str = knob(
        "adam",
        "update rule; adam decouples the weight decay (AdamW); muon is for matrices of the layers, adam for the rest",
        choices=("adam", "sgd", "lion", "muon"),
    )
    lr: float | None = knob(None, "peak learning rate", bounds="(0, inf)")
    min_lr: float = knob(0.0, "learning rate at the end of the decay", bounds="[0, inf)")
    lr_decay_style: str = knob(
        "linear",
        "shape of the decay after warm-up",
        choices=("constant", "linear", "cosine", "inverse-square-root", "WSD", "multi-step"),
    )
    lr_multi_step_points: tuple[str, ...] | None = knob(
        None,
        "SHARE:FACTOR SHARE:FACTOR ...: with multi-step, the rate is FACTOR x --lr after SHARE of the decay; absent: "
        "0.8:0.316 0.9:0.1",
    )
    lr_decay_iters: int | None = knob(
        None, "end of the decay; absent: --train-iters", unit="iterations", bounds="[1, inf)"
    )
    lr_decay_samples: int | None = knob(
        None, "end of the decay; absent: --train-samples", unit="samples", bounds="[1, inf)"
    )
    lr_decay_tokens: int | None = knob(
        None, "end of the decay; absent: --train-tokens", unit="tokens", bounds="[1, inf)"
    )
    lr_warmup_iters: int = knob(0, "length of the linear warm-up", unit="iterations", bounds="[0, inf)")
    lr_warmup_samples: int = knob(0, "length of the linear warm-up", unit="samples", bounds="[0, inf)")
    lr_warmup_tokens: int = knob(0, "length of the linear warm-up", unit="tokens", bounds="[0, inf)")
    lr_warmup_fraction: float | None = knob(None, "length of the warm-up as a share of the decay", bounds="[0, 1)")
    lr_warmup_init: float = knob(0.0, "learning rate the warm-up starts from", bounds="[0, inf)")
    lr_wsd_decay_style: str = knob(
        "exponential",
        "shape of the last phase of WSD",
        choices=("exponential", "linear", "cosine", "minus_sqrt"),
    )
    lr_wsd_decay_iters: int | None = knob(None, "length of the last phase of WSD", unit="iterations", bounds="[1, inf)")
    lr_wsd_decay_samples: int | None = knob(None, "length of the last phase of WSD", unit="samples", bounds="[1, inf)")
    lr_wsd_decay_tokens: int | None = knob(None, "length of the last phase of WSD", unit="tokens", bounds="[1, inf)")
    weight_decay: float = knob(0.01, "weight decay (not on biases and norms)", bounds="[0, inf)")
    lr_multipliers: tuple[str, ...] | None = knob(
        None,
        "PATTERN=FACTOR PATTERN=FACTOR ...: multiply the learning rate of parameters by their names in checkpoints, as "
        "in 'embedding.*=0.1'; the last pattern that fits holds",
    )
    weight_decay_multipliers: tuple[str, ...] | None = knob(
        None,
        "PATTERN=FACTOR PATTERN=FACTOR ...: the same for the weight decay, in place of 1 for matrices and 0 for biases "
        "and norms",
    )
    freeze: tuple[str, ...] | None = knob(
        None, "patterns of names in checkpoints: these parameters stay as they are, without gradient and state"
    )
    train_only: tuple[str, ...] | None = knob(
        None, "the other way round: parameters whose names fit no pattern stay as they are, as in 'embedding.*'"
    )
    start_weight_decay: float | None = knob(None, "weight decay at the start of its schedule", bounds="[0, inf)")
    end_weight_decay: float | None = knob(None, "weight decay at the end of its schedule", bounds="[0, inf)")
    weight_decay_incr_style: str = knob(
        "constant", "schedule of the weight decay", choices=("constant", "linear", "cosine")
    )
    clip_grad: float = knob(1.0, "largest global L2 norm of the gradient; 0 does not clip", bounds="[0, inf)")
    adam_beta1: float = knob(0.9, "decay of the first moment", bounds="[0, 1)")
    adam_beta2: float = knob(0.999, "decay of the second moment", bounds="[0, 1)")
    adam_eps: float = knob(1e-8, "added to the root of the second moment", bounds="(0, 1)")
    lion_beta1: float = knob(0.9, "share of the momentum in the update of lion", bounds="[0, 1)")
    lion_beta2: float = knob(0.99, "decay of the momentum of lion", bounds="[0, 1)")
    sgd_momentum: float = knob(0.9, "momentum of sgd", bounds="[0, 1)")
    muon_momentum: float = knob(0.95, "decay of the momentum of muon", bounds="[0, 1)")
    muon_use_nesterov: bool = knob(False, "muon looks ahead: mix the gradient once more into its momentum")
    muon_num_ns_steps: int = knob(5, "rounds of muon's orthogonalisation (Newton-Schulz)", bounds="[1, 99]")
    muon_scale_mode: str = knob(
        "spectral",
        "what muon's update of an out x in matrix is multiplied by: sqrt(max(out, in)), sqrt(out / in), or the latter "
        "but at least 1",
        choices=("spectral", "unit_rms_norm", "shape_scaling"),
    )
    muon_extra_scale_factor: float = knob(
        1.0, "a further factor; 0.2 with spectral gives muon's updates the size of adam's", bounds="(0, inf)"
    )
    muon_split_qkv: bool = knob(
        True,
        "muon takes queries, keys and values as a matrix each, not as one",
        flag="--muon-no-split-qkv",
        aliases=("--no-muon-split-qkv",),
    )
    loss_scale: float | None = knob(None, "fixed loss scale of fp16; absent: dynamic", bounds="[1, inf)")
    initial_loss_scale: float = knob(2.0**32, "first dynamic loss scale", bounds="[1, inf)")
    min_loss_scale: float = knob(1.0, "smallest dynamic loss scale", bounds="(0, inf)")
    loss_scale_window: int = knob(
        1000, "good iterations before the loss scale doubles", unit="iterations", bounds="[1, inf)"
    )
    hysteresis: int = knob(2, "overflows in a row before the loss scale halves", bounds="[1, inf)")
