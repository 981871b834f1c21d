"""The canonical names of parameters, the same in every layout, and what patterns over them must fit."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

from megatron_ext.errors import ConfigError
from megatron_ext.model.init import CHECKPOINT_METADATA


def canonical_names(models: Sequence[MegatronModule]) -> dict[torch.nn.Parameter, str]:
    """Return the name of every parameter of this rank, as a checkpoint has it: with the number of its layer among all.

    The output layer's copy of a tied embedding has the embedding's name.
    """
    names = {}
    for model in models:
        for entry in nested_values(model.sharded_state_dict(metadata=dict(CHECKPOINT_METADATA))):
            if isinstance(entry, ShardedTensor | ShardedTensorFactory):
                names[entry.data] = entry.key
    return names


def names_of_all_ranks(names: Sequence[str]) -> list[str]:
    """Return the names of the whole model, sorted, the same on every rank. Collective over all ranks."""
    shares: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, list(names))
    return sorted({name for share in shares for name in share})


def refuse_unmatched(patterns: Sequence[str], flag: str, names: Sequence[str]) -> None:
    """Raise a ConfigError for the first pattern that fits no name of the model; the message lists near names."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names)[:3]
            raise ConfigError(
                f"{flag} {pattern} fits no parameter of the model",
                "a tied output layer is embedding.word_embeddings.weight",
                f"near names: {', '.join(near)}",
            )
