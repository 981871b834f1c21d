"""Rules about how the job is cut over processes."""

from __future__ import annotations

from megatron_ext.config.rules.registry import rule
from megatron_ext.config.run import RunConfig


@rule()
def overlap_needs_a_gpu(run: RunConfig) -> str | None:
    """Overlapped communication needs CUDA streams."""
    for name in ("overlap_grad_reduce", "overlap_param_gather"):
        if run.parallel.device == "cpu" and run.get(name):
            return f"--{name.replace('_', '-')} needs a GPU and the device is cpu: leave it out"
    return None
