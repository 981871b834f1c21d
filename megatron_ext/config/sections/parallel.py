"""How a job is cut over processes; nothing here changes what is computed (law L1)."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ext.config.knob import Section, knob


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """Layout of the processes and the device they compute on."""

    tensor_model_parallel_size: int = knob(1, "ranks that share each layer, tp", bounds="[1, inf)")
    pipeline_model_parallel_size: int = knob(1, "pipeline stages, pp", bounds="[1, inf)")
    num_layers_per_virtual_pipeline_stage: int | None = knob(
        None, "layers of one chunk of the interleaved pipeline schedule; absent: no interleaving", bounds="[1, inf)"
    )
    num_virtual_stages_per_pipeline_rank: int | None = knob(
        None, "chunks per pipeline rank, the other way to ask for the interleaved schedule", bounds="[2, inf)"
    )
    sequence_parallel: bool = knob(False, "split norms and dropout over the tensor-parallel ranks along the sequence")
    context_parallel_size: int = knob(1, "ranks that share each sequence, cp; only 1 so far", bounds="[1, inf)")
    use_distributed_optimizer: bool = knob(False, "shard the optimizer state over the data-parallel ranks")
    overlap_grad_reduce: bool = knob(False, "reduce gradients while the backward pass runs")
    overlap_param_gather: bool = knob(False, "gather parameters while the forward pass runs")
    ddp_bucket_size: int | None = knob(
        None, "parameters in one gradient bucket; absent: megatron-core's choice", unit="parameters", bounds="[1, inf)"
    )
    distributed_backend: str | None = knob(
        None, "communication library; absent: nccl on a GPU, gloo on a CPU", choices=("nccl", "gloo")
    )
    distributed_timeout_minutes: int = knob(
        10, "how long a collective waits before the job is ended", unit="minutes", bounds="[1, inf)"
    )
    device: str = knob("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    num_threads: int | None = knob(
        None,
        "CPU threads of each process; absent: the cores divided by the processes of this machine",
        bounds="[1, inf)",
    )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that together hold one copy of the model: tp * pp * cp."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size
