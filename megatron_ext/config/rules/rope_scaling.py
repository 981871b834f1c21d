"""Rules about RoPE that is stretched to longer sequences."""

from __future__ import annotations

from megatron_ext.config.rules.registry import given, rule, without_effect
from megatron_ext.config.run import RunConfig

_OPTIONS = {
    "none": "",
    "linear": "rope_scaling_factor",
    "ntk": "rope_scaling_factor",
    "yarn": "rope_scaling_factor original_max_position_embeddings rope_scaling_beta_fast rope_scaling_beta_slow "
    "rope_scaling_attention_factor",
    "llama3": "rope_scaling_factor original_max_position_embeddings rope_scaling_low_freq_factor "
    "rope_scaling_high_freq_factor",
}
"""`--rope-scaling-type` -> the options that its formula reads."""
_NEEDED = {
    "linear": ("rope_scaling_factor",),
    "ntk": ("rope_scaling_factor",),
    "yarn": ("rope_scaling_factor", "original_max_position_embeddings"),
}


def _kind(run: RunConfig) -> str:
    scaling = run.model.rope_scaling
    return "none" if scaling is None else scaling.kind


@rule()
def rope_scaling_has_one_type(run: RunConfig) -> str | None:
    """Megatron-LM's switch is one of the types."""
    if not run.model.use_rope_scaling or run.model.rope_scaling_type in ("none", "llama3"):
        return None
    return f"--use-rope-scaling means --rope-scaling-type llama3, not {run.model.rope_scaling_type}: give one of them"


@rule()
def rope_scaling_options_fit_the_type(run: RunConfig) -> str | None:
    """Each type has its own formula."""
    kind = _kind(run)
    read = _OPTIONS[kind].split()
    every = dict.fromkeys(name for names in _OPTIONS.values() for name in names.split())
    foreign = " ".join(name for name in every if name not in read)
    return without_effect(run, foreign, f"with --rope-scaling-type {kind}")


@rule()
def rope_scaling_is_complete(run: RunConfig) -> str | None:
    """How far to stretch has no default, but for Llama 3.1's own numbers."""
    kind = _kind(run)
    absent = [name for name in _NEEDED.get(kind, ()) if not given(run, name)]
    if not absent:
        return None
    return f"--rope-scaling-type {kind} needs " + " and ".join("--" + name.replace("_", "-") for name in absent)


@rule()
def rope_scaling_bounds_are_ordered(run: RunConfig) -> str | None:
    """Channels between the two bounds are slowed by a share; between equal bounds there is none to compute."""
    model = run.model
    if model.rope_scaling_beta_slow >= model.rope_scaling_beta_fast:
        return (
            f"--rope-scaling-beta-slow {model.rope_scaling_beta_slow:g} must be less than "
            f"--rope-scaling-beta-fast {model.rope_scaling_beta_fast:g}"
        )
    if model.rope_scaling_low_freq_factor >= model.rope_scaling_high_freq_factor:
        return (
            f"--rope-scaling-low-freq-factor {model.rope_scaling_low_freq_factor:g} must be less than "
            f"--rope-scaling-high-freq-factor {model.rope_scaling_high_freq_factor:g}"
        )
    return None


@rule(needs="hidden_size num_attention_heads")
def ntk_scaling_has_pairs_to_stretch(run: RunConfig) -> str | None:
    """Its base is raised to D/(D - 2) for D rotated channels."""
    rotated = int(run.model.head_dim * run.model.rotary_percent)
    if _kind(run) != "ntk" or rotated > 2:
        return None
    return f"--rope-scaling-type ntk needs more than {rotated} rotated channels in a head"
