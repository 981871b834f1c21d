"""torch.compile, once per function and process."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


@functools.cache
def compiled(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return `function` as torch.compile makes it: the same wherever it is asked for, so that nothing is made twice.

    Its first call takes seconds. Sizes that change later (a last chunk, longer sequences) are made general once.
    """
    return torch.compile(function)
