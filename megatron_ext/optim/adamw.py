"""AdamW and SGD that keep the step count in the parameter group and create their state at once.

The step of torch's own AdamW is a tensor per parameter, which megatron-core's reshardable checkpoint of the
distributed optimizer cannot load; Transformer Engine keeps it in the group, and so do we. State that exists from
the start makes a checkpoint at step 0 the same kind of object as any other.
"""

from __future__ import annotations

from typing import Any

import torch


class AdamW(torch.optim.AdamW):
    """Decoupled weight decay Adam with fp32 state, fused on CPU and CUDA.

    theta <- theta - lr * (m_hat / (sqrt(v_hat) + eps) + weight_decay * theta).

    Source: arXiv:1711.05101, algorithm 2.
    """

    state_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def init_state(self) -> None:
        """Give every parameter zero moments; called again after the distributed optimizer has cut the parameters."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {name: torch.zeros_like(parameter.data) for name in self.state_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's AdamW would look for a step beside every parameter's moments, and fail in load_state_dict
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; counts one step in every group."""
        del closure
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            with_gradient = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            if with_gradient:
                self._update(with_gradient, group)

    def _update(self, with_gradient: list[tuple[torch.Tensor, torch.Tensor]], group: dict[str, Any]) -> None:
        _adamw_update(with_gradient, self.state, group)


class SGD(torch.optim.SGD):
    """SGD with momentum: v <- momentum * v + (grad + weight_decay * theta); theta <- theta - lr * v."""

    state_names = ("momentum_buffer",)

    def init_state(self) -> None:
        """Give every parameter a zero momentum, which makes the first step that of torch's SGD."""
        for group in self.param_groups:
            group.setdefault("step", 0)
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter.data)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; counts one step in every group."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        super().step(closure)


def _adamw_update(
    with_gradient: list[tuple[torch.Tensor, torch.Tensor]], state: dict[torch.Tensor, Any], group: dict[str, Any]
) -> None:
    parameters = [parameter for parameter, _ in with_gradient]
    beta1, beta2 = group["betas"]
    # one step for all, filled on the device: torch's own function would want a tensor, and a copy from the host, each
    step = torch.full((), float(group["step"]), device=parameters[0].device)
    torch._fused_adamw_(
        parameters,
        [gradient for _, gradient in with_gradient],
        [state[parameter]["exp_avg"] for parameter in parameters],
        [state[parameter]["exp_avg_sq"] for parameter in parameters],
        [],
        [step] * len(parameters),
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
