"""Stages that train a part of the model: embeddings only, embeddings and head, all but some layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from megatron.core.models.gpt import GPTModel

from megatron_ext import log
from megatron_ext.config import RunConfig
from megatron_ext.config.sections.optim import OptimConfig
from megatron_ext.errors import ConfigError
from megatron_ext.optim.parameter_names import canonical_names, names_of_all_ranks, refuse_unmatched


def freeze_parameters(run: RunConfig, models: Sequence[GPTModel]) -> None:
    """Keep the parameters that fit --freeze, or that do not fit --train-only, as they are.

    To be called before gradient buffers are made: a frozen parameter gets neither a buffer nor optimizer state, and
    no gradient is computed for it. Collective over all ranks when one of the flags is given.

    Raises:
        ConfigError: a pattern fits no parameter, or nothing is left to train; the same on every rank.
    """
    flag = "--freeze" if run.optim.freeze else "--train-only"
    patterns = run.optim.freeze or run.optim.train_only
    if not patterns:
        return
    names = canonical_names(models)
    everywhere = names_of_all_ranks(list(names.values()))
    refuse_unmatched(patterns, flag, everywhere)

    trained = [name for name in everywhere if is_trained(run.optim, name)]
    if not trained:
        raise ConfigError(f"{flag} {' '.join(patterns)} leaves nothing to train")
    log.info(f"{flag}: {len(trained)} of {len(everywhere)} parameters are trained")
    for parameter, name in names.items():
        parameter.requires_grad_(is_trained(run.optim, name))
    if run.train.recompute_granularity is not None:
        for model in models:
            _let_recomputed_layers_train(model)


def is_trained(optim: OptimConfig, name: str) -> bool:
    """Say whether --freeze and --train-only leave the parameter of this canonical name to be trained."""
    patterns = optim.freeze or optim.train_only
    if not patterns:
        return True
    return any(fnmatchcase(name, pattern) for pattern in patterns) is not bool(optim.freeze)


def _let_recomputed_layers_train(model: GPTModel) -> None:
    """Ask for the gradient of a frozen embedding's output.

    megatron-core's recomputation gives no gradient to the weights of a module none of whose inputs needs one.
    """
    if not model.pre_process or any(parameter.requires_grad for parameter in model.embedding.parameters()):
        return
    if any(parameter.requires_grad for parameter in model.parameters()):
        model.embedding.register_forward_hook(_require_gradient)


def _require_gradient(_: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output
