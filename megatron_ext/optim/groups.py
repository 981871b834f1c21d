"""Parameter groups: which parameters share a factor of the learning rate and of the weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_ext.config import RunConfig
from megatron_ext.config.name_factors import factor_of, parse_name_factors
from megatron_ext.optim.muon import Matrices, matrices_of
from megatron_ext.optim.parameter_names import canonical_names, names_of_all_ranks, refuse_unmatched


def parameter_groups(run: RunConfig, chunks: Sequence[DistributedDataParallel]) -> list[dict[str, Any]]:
    """Split this rank's trained parameters by their factors; one empty group where the rank trains none.

    Weights are decayed, biases and norm weights are not (Megatron-LM's rule), unless --weight-decay-multipliers says
    otherwise. The keys besides `params` are those by which megatron-core tells groups apart, and `matrices`, which is
    for Muon. Collective over all ranks where patterns are given.

    Raises:
        ConfigError: a pattern fits no parameter of the model; the same on every rank.
    """
    names = canonical_names([chunk.module for chunk in chunks])
    rates = parse_name_factors(run.optim.lr_multipliers, "--lr-multipliers")
    decays = parse_name_factors(run.optim.weight_decay_multipliers, "--weight-decay-multipliers")
    if rates or decays:
        everywhere = names_of_all_ranks(list(names.values()))
        refuse_unmatched([pattern for pattern, _ in rates], "--lr-multipliers", everywhere)
        refuse_unmatched([pattern for pattern, _ in decays], "--weight-decay-multipliers", everywhere)
    groups: dict[tuple[float, float, Matrices | None], list[torch.nn.Parameter]] = {}
    for parameter in (parameter for chunk in chunks for parameter in chunk.parameters() if parameter.requires_grad):
        name = names[parameter]
        decay, rate = factor_of(decays, name), factor_of(rates, name)
        if decay is None:
            decay = 0.0 if parameter.dim() == 1 or name.endswith(".bias") else 1.0
        key = (decay, 1.0 if rate is None else rate, matrices_of(run, name, parameter))
        groups.setdefault(key, []).append(parameter)
    # the order is that of the factors, whatever the order of the parameters
    ordered = sorted(groups.items(), key=lambda group: (group[0][:2], group[0][2] or ()), reverse=True)
    common = {"max_lr": run.optim.lr, "min_lr": run.optim.min_lr, "is_expert_parallel": False}
    return [
        {
            "params": parameters, "wd_mult": decay, "lr_mult": rate, **common, "is_decoupled_lr": False,
            "default_config": True, "matrices": matrices,
        }
        for (decay, rate, matrices), parameters in ordered or [((1.0, 1.0, None), [])]
    ]  # fmt: skip
