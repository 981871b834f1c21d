"""What a run reports, where and how often."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """Console line, TensorBoard, profile, progress line."""

    log_interval: int = knob(100, "steps between console lines", unit="iterations", bounds="[1, inf)")
    log_throughput: bool = knob(False, "add TFLOP/s per rank to the console line")
    tensorboard_dir: str | None = knob(None, "folder to write TensorBoard files to")
    tensorboard_log_interval: int = knob(1, "steps between TensorBoard points", unit="iterations", bounds="[1, inf)")
    log_params_norm: bool = knob(False, "compute and report the L2 norm of the parameters")
    log_num_zeros_in_grad: bool = knob(False, "count and report zeros in the gradient")
    log_sample_ids: str | None = knob(None, "file to write the sample ids of every step to, as JSON lines")
    profile: bool = knob(
        False,
        "print how the time of a step divides and write it as JSON, then write a torch.profiler trace of as many steps "
        "that follow (tracing would slow what is timed: on a CPU steps of 70 ms by 20 %, of 1.3 s by 2 %); into the "
        "folder profile of --tensorboard-dir, else of --save, else of the working directory",
    )
    profile_step_start: int = knob(
        10, "with --profile: steps done before the first one that is timed", unit="iterations", bounds="[0, inf)"
    )
    profile_step_end: int = knob(
        12, "with --profile: steps done after the last one that is timed", unit="iterations", bounds="[1, inf)"
    )
    profile_ranks: tuple[int, ...] = knob(
        (0,), "with --profile: ranks that write a trace; the times are those of the last rank", bounds="[0, inf)"
    )
    progress: bool = knob(True, "on a terminal, a progress line with the time left")
