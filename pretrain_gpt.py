#!/usr/bin/env python
"""Pretrain a GPT: `torchrun --nproc-per-node N pretrain_gpt.py --config FILE ... --data-path PREFIX --save DIR`."""

from __future__ import annotations

import os
import time
import warnings

from megatron_ext.config import load_run_config
from megatron_ext.errors import run_command


def main(argv: list[str]) -> None:
    """Resolve and check the settings, which needs no torch; then train."""
    started_at = time.monotonic()
    resolved = load_run_config(argv, int(os.environ.get("WORLD_SIZE", "1")))
    # megatron-core warns once per optional GPU library that is not installed; tools/doctor.py says which in one line
    warnings.filterwarnings("ignore")
    from megatron_ext.training.loop import pretrain

    pretrain(resolved, started_at)


if __name__ == "__main__":
    run_command(main)
