"""The marks of a test that needs GPUs: left out where there are none, and how many."""

from __future__ import annotations

import pytest
import torch


def needs_gpus(count: int) -> list[pytest.MarkDecorator]:
    """Marks for a test that needs `count` GPUs; `torch.cuda` is asked for their number, which starts nothing."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = f"needs {count} CUDA device{'s' if count > 1 else ''}, this machine has {there}"
    return [pytest.mark.gpu, pytest.mark.skipif(there < count, reason=reason), pytest.mark.timeout(0)]
