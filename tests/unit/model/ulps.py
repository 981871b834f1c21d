"""How far a bf16 result may be from the exact one, and how many threads compute it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def assert_rounded(actual: Tensor, exact: Tensor, lost: float = 0.0) -> None:
    """Assert that bf16 `actual` is fp64 `exact` rounded once, with fp32 inside.

    That is half a step of bf16, a hundredth of it for fp32, plus `lost`.
    """
    assert actual.dtype == torch.bfloat16 and actual.shape == exact.shape
    step = torch.exp2(exact.abs().clamp(min=2.0**-126).log2().floor() - 7)
    off = (actual.double() - exact).abs() - 0.505 * step - lost
    worst = off.argmax()
    assert not (off > 0).any(), f"{actual.flatten()[worst]} for {exact.flatten()[worst]}"
    assert actual.isfinite().all()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
