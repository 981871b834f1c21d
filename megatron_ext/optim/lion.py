"""Lion: one moment, and every element moves by the learning rate in the direction of a sign.

The step count and the state are kept as in `adamw`. A sign looks at one element alone, so the flat slices of the
distributed optimizer give what whole tensors give.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from megatron_ext.optim.adamw import AdamW


class Lion(AdamW):
    """Sign of an interpolated momentum, with decoupled weight decay and fp32 state.

    u = sign(beta1 * m + (1 - beta1) * grad); theta <- theta - lr * (u + weight_decay * theta);
    m <- beta2 * m + (1 - beta2) * grad.

    From AdamW it has how state is kept and steps are counted; megatron-core's distributed optimizer asserts that class,
    for the sake of its own checkpoints, which we do not write.

    Args:
        params: parameters or groups of them.
        lr: learning rate; 3 to 10 times smaller than AdamW's.
        betas: the shares that the momentum keeps in the update and in itself.
        weight_decay: as many times larger than AdamW's.

    Source: arXiv:2302.06675, algorithm 2.
    """

    state_names = ("exp_avg",)

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _update(self, with_gradient: list[tuple[torch.Tensor, torch.Tensor]], group: dict[str, Any]) -> None:
        for parameter, gradient in with_gradient:
            _lion_update(parameter, gradient, self.state[parameter]["exp_avg"], group)


def _lion_update(
    parameter: torch.Tensor, gradient: torch.Tensor, momentum: torch.Tensor, group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    direction = momentum.mul(beta1).add_(gradient, alpha=1.0 - beta1).sign_()
    parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
    momentum.mul_(beta2).add_(gradient, alpha=1.0 - beta2)
