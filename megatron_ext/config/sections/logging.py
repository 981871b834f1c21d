"""What a run reports, where and how often."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """Console line, TensorBoard, progress line."""

    log_interval: int = knob(100, "steps between console lines", unit="iterations", bounds="[1, inf)")
    log_throughput: bool = knob(False, "add TFLOP/s per rank to the console line")
    tensorboard_dir: str | None = knob(None, "folder to write TensorBoard files to")
    tensorboard_log_interval: int = knob(1, "steps between TensorBoard points", unit="iterations", bounds="[1, inf)")
    log_params_norm: bool = knob(False, "compute and report the L2 norm of the parameters")
    log_num_zeros_in_grad: bool = knob(False, "count and report zeros in the gradient")
    log_sample_ids: str | None = knob(None, "file to write the sample ids of every step to, as JSON lines")
    progress: bool = knob(True, "on a terminal, a progress line with the time left")
