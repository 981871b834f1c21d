"""Weights of a blend that follow the losses: a dataset on which the model is worse is seen more (law L2 kept).

TeleChat-12B raised the weights of hard datasets by their loss, measured from time to time (its report gives no
formula). The formulas here are published: multiplicative weights by the loss above a reference, as in Sheared LLaMA's
dynamic batch loading, and a part of other weights mixed in, as in DoReMi.

Sources: Xia et al. 2023, "Sheared LLaMA", arXiv 2310.06694, algorithm 1; Xie et al. 2023, "DoReMi", arXiv 2305.10429,
algorithm 1; Wang et al. 2024, "TeleChat Technical Report", arXiv 2401.03804.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_ext.config import DataConfig
from megatron_ext.data.blend import BlendView
from megatron_ext.errors import DataError
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.source_losses import Decision

if TYPE_CHECKING:
    from megatron_ext.data.views import View

_LOSS_STEP = 0.01
"""Losses are rounded to a multiple of this first: what a layout changes in them is far less."""
_DIGITS = 6


@dataclass(frozen=True)
class Policy:
    """How weights follow losses.

    Attributes:
        rate: eta, what a loss that is higher by 1 adds to the logarithm of a weight.
        floor: share of the first weights in all later ones.
        references: the loss that each source should reach; None compares with the mean.
    """

    rate: float
    floor: float
    references: tuple[float, ...] | None = None

    @classmethod
    def of(cls, data: DataConfig) -> Policy:
        """The policy of the flags."""
        words = data.blend_reference_losses
        references = None if words is None else tuple(float(word) for word in words)
        return cls(data.blend_reweight_rate, data.blend_reweight_floor, references)


def next_weights(
    weights: NDArray[np.float64], first_weights: NDArray[np.float64], losses: Sequence[float | None], policy: Policy
) -> tuple[float, ...]:
    """The weights that follow from the losses under `weights`; a pure function.

        w' = w exp(rate e) / sum(w exp(rate e)),   e = max(loss - reference, 0), or loss - mean loss under w
        result = (1 - floor) w' + floor first_weights

    A source that was not seen keeps its share of the whole in w'; the others divide the rest.

    Losses enter rounded to 0.01, and weights come out rounded to six digits. So the small differences between losses
    of two layouts (law L1) hardly ever change a weight. They can where a loss lies at the edge between two multiples;
    weights that were decided stay as they are in any layout that goes on from a checkpoint.

    Args:
        weights: float64 `[k]`, sum 1.
        first_weights: float64 `[k]`, sum 1.
        losses: `[k]`, mean per token; None for a source that was not seen.
        policy: how weights follow losses.
    """
    seen = np.array([loss is not None for loss in losses]) & (weights > 0)
    rounded = np.array([round((loss or 0.0) / _LOSS_STEP) * _LOSS_STEP for loss in losses])
    if policy.references is not None:
        excess = np.maximum(rounded - np.array(policy.references), 0.0)
    else:
        seen_weight = max(weights[seen].sum(), np.finfo(np.float64).tiny)
        excess = rounded - (weights * rounded)[seen].sum() / seen_weight
    exponents = np.where(seen, policy.rate * excess, -np.inf)
    if seen.any():
        grown = weights * np.exp(exponents - exponents.max())  # the largest is 1: no overflow
        weights = np.where(seen, grown * (weights[seen].sum() / grown.sum()), weights)
    mixed = (1.0 - policy.floor) * weights + policy.floor * first_weights
    return tuple(float(f"{weight:.{_DIGITS}g}") for weight in mixed.tolist())


def apply_decisions(view: View | None, decisions: Sequence[Decision]) -> bool:
    """Let what was decided hold in a blend; false, and nothing changed, where the view has no such weights."""
    if not decisions:
        return True
    if view is None or not has_weights(view) or len(view.source_names) != len(decisions[0].weights):
        return False
    assert isinstance(view, BlendView)
    for decision in decisions:
        view.reweight(decision.consumed_samples, decision.weights)
    return True


def has_weights(view: View) -> bool:
    """Whether the view is a blend whose weights can change."""
    return isinstance(view, BlendView) and view.is_weighted


def check_policy(data: DataConfig, view: View | None) -> None:
    """Check that a policy is given for data that it can work on.

    Raises:
        DataError: the training data is no weighted blend, or has not as many datasets as there are reference losses.
    """
    if data.blend_reweight_interval is None or view is None:
        return
    if not has_weights(view):
        raise DataError(
            "--blend-reweight-interval changes weights, and the training data has none",
            "Weights belong to two datasets or more",
            "Give --data-path (or --train-data-path) as WEIGHT PREFIX WEIGHT PREFIX ...",
        )
    losses = data.blend_reference_losses
    if losses is not None and len(losses) != len(view.source_names):
        raise DataError(
            f"--blend-reference-losses gives {len(losses)} losses",
            f"The training data has {len(view.source_names)} datasets",
            "Give one loss for each, in their order",
        )


class Reweighting:
    """Decides on the weights of the training blend; collective, the same on every rank.

    Args:
        parts: the run, whose training view has weights.
    """

    def __init__(self, parts: Components) -> None:
        self._policy = Policy.of(parts.run.data)
        self._view = parts.datasets.train if parts.datasets else None
        self._device = parts.world.device

    def __call__(self, state: TrainState) -> Decision:
        """Change the weights from the next global batch on, by the losses since the last decision, and keep them."""
        view, sources, place = self._view, state.sources, state.consumed_samples
        assert isinstance(view, BlendView) and sources is not None, "check_policy comes first"
        losses = sources.since_decision.losses
        mine = next_weights(view.weights_at(place), view.weights_at(0), losses, self._policy)
        weights = torch.tensor(mine, dtype=torch.float64, device=self._device)
        dist.broadcast(weights, src=0)  # another kind of processor may compute another last digit of exp
        decision = Decision(state.iteration, place, tuple(weights.tolist()), tuple(losses))
        view.reweight(place, decision.weights)
        sources.decide(decision)
        return decision
