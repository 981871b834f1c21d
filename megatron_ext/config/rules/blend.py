"""Rules about weights of a blend that move with progress or follow the losses."""

from __future__ import annotations

import math

from megatron_ext.config.rules.registry import given, rule, without_effect
from megatron_ext.config.run import RunConfig


@rule()
def moving_weights_have_an_order_to_move(run: RunConfig) -> str | None:
    """Megatron's order is laid out for constant weights; an order file says the shares itself."""
    order = run.data.dataset_order
    if order in ("permuted", "sequential"):
        return None
    return without_effect(run, "blend_schedule blend_reweight_interval", f"with --dataset-order {order}")


@rule()
def reweighting_says_how_often(run: RunConfig) -> str | None:
    """Without an interval the weights stay."""
    if run.data.blend_reweight_interval is not None:
        return None
    names = "blend_reweight_rate blend_reweight_floor blend_reference_losses"
    return without_effect(run, names, "without --blend-reweight-interval")


@rule(needs="blend_reweight_interval")
def weights_follow_one_plan(run: RunConfig) -> str | None:
    """The losses or a schedule."""
    schedule = given(run, "blend_schedule")
    return (
        f"--blend-reweight-interval and {schedule[0]} both change the weights: give one of them" if schedule else None
    )


@rule(needs="blend_reference_losses")
def reference_losses_are_numbers(run: RunConfig) -> str | None:
    """One loss per dataset; how many datasets there are is known when the data is opened."""
    for word in run.data.blend_reference_losses or ():
        try:
            loss = float(word)
        except ValueError:
            loss = math.nan
        if not (math.isfinite(loss) and loss >= 0):
            return f"--blend-reference-losses {word} is not a loss, a finite number of at least 0"
    return None
