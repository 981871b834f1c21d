"""The fused Adam of Transformer Engine or NVIDIA's Apex, where one is installed, kept as our own AdamW is."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from megatron_ext.optim.adamw import AdamW
from megatron_ext.platform.kernels import ENGINE, TORCH


def adam_of(back_end: str) -> type[AdamW]:
    """Return the class of decoupled Adam of a back end of `platform.kernels`; arguments as of `AdamW`.

    All three compute the same formula, keep the step count in the parameter group and call the moments `exp_avg` and
    `exp_avg_sq`, so a checkpoint of one is a checkpoint of the others.
    """
    if back_end == TORCH:
        return AdamW
    if back_end == ENGINE:
        return _fused_class(importlib.import_module("transformer_engine.pytorch.optimizers").FusedAdam)
    return _fused_class(importlib.import_module("apex.optimizers").FusedAdam)


@functools.cache
def _fused_class(base: Any) -> Any:
    class FusedAdam(base):  # type: ignore[misc]
        state_names = AdamW.state_names
        # the libraries create the moments in their first step, and only where there are none
        init_state = AdamW.init_state

        def __init__(self, params: Any, **settings: Any) -> None:
            super().__init__(params, adam_w_mode=True, **settings)

    return FusedAdam
