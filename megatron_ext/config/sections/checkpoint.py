"""Where checkpoints go, come from, and which are kept."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Saving, retention and loading."""

    save: str | None = knob(None, "folder to write checkpoints, metrics.jsonl and the resolved configuration to")
    save_interval: int | None = knob(
        None, "steps between checkpoints; absent: only at the end", unit="iterations", bounds="[1, inf)"
    )
    save_retain_interval: int | None = knob(
        None,
        "delete older checkpoints except those whose step is a multiple of this",
        unit="iterations",
        bounds="[1, inf)",
    )
    keep_last: int | None = knob(
        None,
        "checkpoints to keep, the newest ones; absent: all",
        flag="--save-keep-last",
        unit="checkpoints",
        bounds="[1, inf)",
    )
    load: str | None = knob(None, "folder to load the newest checkpoint from; nothing there: start from the beginning")
    ckpt_step: int | None = knob(
        None, "load the checkpoint of this step instead of the newest", unit="iterations", bounds="[0, inf)"
    )
    finetune: bool = knob(False, "load the weights only and start at step 0")
    no_save_optim: bool = knob(False, "leave the optimizer state out of checkpoints")
    no_load_optim: bool = knob(False, "do not load the optimizer state")
    allow_older_checkpoint: bool = knob(False, "when the newest checkpoint is damaged, use the newest good one")
    exit_on_missing_checkpoint: bool = knob(False, "end with an error when --load holds no checkpoint")
    override_opt_param_scheduler: bool = knob(
        False,
        "take the schedule from the settings, not from the checkpoint",
        flag="--override-opt_param-scheduler",
        aliases=("--override-opt-param-scheduler",),
    )
    use_checkpoint_opt_param_scheduler: bool = knob(
        False,
        "take the schedule from the checkpoint, whatever the settings say",
        flag="--use-checkpoint-opt_param-scheduler",
        aliases=("--use-checkpoint-opt-param-scheduler",),
    )
