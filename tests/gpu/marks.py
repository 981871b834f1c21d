"""The marks of a test that needs a GPU: left out where there is none."""

from __future__ import annotations

import pytest
import torch

NEEDS_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, this machine has none"),
    pytest.mark.timeout(0),
]
