"""What a resume must share with its checkpoint about single parameters: which are trained, at which factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from megatron.core.transformer.module import MegatronModule

from megatron_ext.config.name_factors import factor_of, parse_name_factors
from megatron_ext.config.sections.optim import OptimConfig
from megatron_ext.errors import CheckpointError
from megatron_ext.optim.freeze import is_trained
from megatron_ext.optim.parameter_names import canonical_names, names_of_all_ranks

_SHOWN = 3


def refuse_other_trained_parameters(
    folder: Path, saved: OptimConfig, wanted: OptimConfig, models: Sequence[MegatronModule]
) -> None:
    """Raise a CheckpointError that names parameters trained in the run and frozen at the save, or the other way round.

    Optimizer state exists for trained parameters only. Patterns that name the same parameters are the same. Collective
    over all ranks where the patterns differ.
    """
    if (saved.freeze, saved.train_only) == (wanted.freeze, wanted.train_only):
        return

    def describe(optim: OptimConfig, name: str) -> str:
        return "trained" if is_trained(optim, name) else "frozen"

    differing = _differing(saved, wanted, models, describe)
    if differing:
        raise CheckpointError(
            f"{folder} has optimizer state for other parameters: {differing}",
            "see --freeze and --train-only",
            "give the flags of the first start, or begin another stage from its weights with --finetune (at step 0) or "
            "--no-load-optim",
        )


def refuse_other_multipliers(
    folder: Path, saved: OptimConfig, wanted: OptimConfig, models: Sequence[MegatronModule]
) -> None:
    """Raise a CheckpointError that names parameters whose rate or weight decay was multiplied by another factor.

    Patterns that give the same factors are the same. Collective over all ranks where the patterns differ.
    """
    for field, flag in (
        ("lr_multipliers", "--lr-multipliers"),
        ("weight_decay_multipliers", "--weight-decay-multipliers"),
    ):
        there, here = getattr(saved, field), getattr(wanted, field)
        if there == here:
            continue

        def describe(optim: OptimConfig, name: str, field: str = field, flag: str = flag) -> str:
            factor = factor_of(parse_name_factors(getattr(optim, field), flag), name)
            return "as usual" if factor is None else f"x {factor}"

        differing = _differing(saved, wanted, models, describe)
        if differing:
            raise CheckpointError(
                f"{folder} was trained with other {flag}: {differing}",
                f"there it was {flag} {' '.join(there)}" if there else f"there was no {flag}",
                "give the flags of the first start, or let the new ones win with --override-opt_param-scheduler",
            )


def _differing(
    saved: OptimConfig,
    wanted: OptimConfig,
    models: Sequence[MegatronModule],
    describe: Callable[[OptimConfig, str], str],
) -> str:
    """Name some parameters that are described differently, with both descriptions; empty where none is."""
    names = names_of_all_ranks(list(canonical_names(models).values()))
    pairs = [(name, describe(saved, name), describe(wanted, name)) for name in names]
    told = [f"{name} {there} there, {here} here" for name, there, here in pairs if there != here]
    more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return "; ".join(told[:_SHOWN]) + more
