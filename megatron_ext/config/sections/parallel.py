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
    num_layers_in_first_pipeline_stage: int | None = knob(
        None,
        "layers of the first pipeline stage; the other stages share the rest equally",
        flag="--decoder-first-pipeline-num-layers",
        bounds="[1, inf)",
    )
    num_layers_in_last_pipeline_stage: int | None = knob(
        None,
        "layers of the last pipeline stage; the other stages share the rest equally",
        flag="--decoder-last-pipeline-num-layers",
        bounds="[1, inf)",
    )
    account_for_embedding_in_pipeline_split: bool = knob(
        False, "count the embedding as a layer, so that the first pipeline stage holds one transformer layer less"
    )
    account_for_loss_in_pipeline_split: bool = knob(
        False, "count the output layer as a layer, so that the last pipeline stage holds one transformer layer less"
    )
    pipeline_model_parallel_layout: str | None = knob(
        None,
        "what each stage (with interleaving: each chunk, in the order of the layers) holds: E embedding, t layer, "
        "L output layer and loss, | next stage, x*n and (...)*n repetitions, as in 'Et*3|(tt|)*2tL'",
    )
    sequence_parallel: bool = knob(False, "split norms and dropout over the tensor-parallel ranks along the sequence")
    context_parallel_size: int = knob(
        1, "ranks that share each sequence, cp, two of its 2 cp chunks each", bounds="[1, inf)"
    )
    use_distributed_optimizer: bool = knob(False, "shard the optimizer state over the data-parallel ranks")
    num_distributed_optimizer_instances: int = knob(
        1,
        "equal groups of data-parallel ranks that each hold the whole state of the distributed optimizer: gradients "
        "are scattered inside a group and summed over the groups, parameters are gathered inside a group only",
        bounds="[1, inf)",
    )
    overlap_grad_reduce: bool = knob(False, "reduce gradients while the backward pass runs")
    overlap_param_gather: bool = knob(False, "gather parameters while the forward pass runs")
    ddp_bucket_size: int | None = knob(
        None,
        "parameters whose gradients are reduced together while the backward pass goes on; absent: the larger of "
        "40,000,000 and 1,000,000 per data-parallel rank. Needs --overlap-grad-reduce: without it, and on pipeline "
        "stages and model chunks after the first, all gradients of a chunk are one bucket",
        unit="parameters",
        bounds="[1, inf)",
    )
    deterministic_data_parallel: bool = knob(
        False,
        "sum gradients, losses and norms in an order that does not depend on the number of data-parallel ranks (a "
        "power of two): 1, 2, 4, ... ranks then give the same bits, from the same micro-batches (on a CPU, of the "
        "same --num-threads). A rank takes consecutive micro-batches and keeps log2(parts / dp) more copies of its "
        "gradients, see --deterministic-data-parallel-parts; nothing overlaps the backward pass. Measured cost: "
        "4 % of a step on one rank, 10 to 22 % on two over gloo, see docs/data-parallel.md",
    )
    deterministic_data_parallel_parts: int | None = knob(
        None,
        "equal parts of the global batch whose gradients are summed apart, then in pairs: the most data-parallel "
        "ranks that give the same bits. As many parts as ranks need no memory. Absent: the largest power of two that "
        "divides the number of micro-batches",
        bounds="[1, inf)",
    )
    distributed_backend: str | None = knob(
        None, "communication library; absent: nccl on a GPU, gloo on a CPU", choices=("nccl", "gloo")
    )
    distributed_timeout_minutes: int = knob(
        10, "how long a collective waits before the job is ended", unit="minutes", bounds="[1, inf)"
    )
    device: str = knob("auto", "where to compute; auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    transformer_impl: str | None = knob(
        None,
        "whose kernels run: local for PyTorch's, or Transformer Engine's and Apex's; absent: those that are installed, "
        "and on a CPU with AVX-512 this project's for bf16",
        choices=("local", "transformer_engine"),
    )
    compile: bool = knob(
        False,
        "torch.compile makes RMSNorm and SwiGLU on a CPU where no other kernels compute them; needs a C++ compiler, "
        "and half a minute at the start. On a GPU SwiGLU, RoPE and losses are compiled anyway where Triton is "
        "installed, but not with --transformer-impl local, unless this flag is given",
    )
    num_threads: int | None = knob(
        None,
        "CPU threads of each process; absent: the cores divided by the processes of this machine",
        bounds="[1, inf)",
    )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that together hold one copy of the model: tp * pp * cp."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def parts_counted_as_layers(self) -> int:
        """How many of embedding and output layer take the place of a transformer layer in the pipeline split."""
        return self.account_for_embedding_in_pipeline_split + self.account_for_loss_in_pipeline_split
