"""Rules about how the job is cut over processes."""

from __future__ import annotations

from megatron_ext.config.pipeline_split import units_of_stages
from megatron_ext.config.rules.pipeline_split import UNEVEN
from megatron_ext.config.rules.registry import given, rule, without_effect
from megatron_ext.config.run import RunConfig


@rule()
def world_size_holds_whole_model_copies(run: RunConfig) -> str | None:
    """The world is a multiple of tp * pp * cp."""
    parallel, cp = run.parallel, run.parallel.context_parallel_size
    if run.world_size % parallel.model_parallel_size == 0:
        return None
    return (
        f"the world size {run.world_size} is not a multiple of --tensor-model-parallel-size "
        f"{parallel.tensor_model_parallel_size} x --pipeline-model-parallel-size "
        f"{parallel.pipeline_model_parallel_size} {f'x --context-parallel-size {cp} ' if cp > 1 else ''}"
        f"= {parallel.model_parallel_size}: start another number of processes"
    )


@rule(needs="num_attention_heads")
def attention_heads_divide_over_tensor_ranks(run: RunConfig) -> str | None:
    """Each tensor-parallel rank holds whole heads."""
    tp = run.parallel.tensor_model_parallel_size
    if run.model.heads % tp == 0:
        return None
    return f"--num-attention-heads {run.model.heads} is not a multiple of --tensor-model-parallel-size {tp}"


@rule(needs="num_query_groups")
def query_groups_divide_over_tensor_ranks(run: RunConfig) -> str | None:
    """A tensor-parallel rank holds whole key/value heads, or equally many ranks share one."""
    tp, groups = run.parallel.tensor_model_parallel_size, run.model.query_groups
    if groups % tp == 0 or tp % groups == 0:
        return None
    return f"--num-query-groups {groups} is neither a multiple nor a divisor of --tensor-model-parallel-size {tp}"


@rule(needs="hidden_size num_attention_heads")
def query_key_value_rows_divide_over_tensor_ranks(run: RunConfig) -> str | None:
    """Each tensor-parallel rank stores equally many rows of the projection, also where ranks share a key/value head."""
    tp, model = run.parallel.tensor_model_parallel_size, run.model
    rows = (model.heads + 2 * model.query_groups) * model.head_dim
    if rows % tp == 0 or model.heads % tp or tp % model.query_groups:
        return None
    return (
        f"the query/key/value projection has (--num-attention-heads {model.heads} + 2 x --num-query-groups "
        f"{model.query_groups}) x --kv-channels {model.head_dim} = {rows} rows, not a multiple of "
        f"--tensor-model-parallel-size {tp}"
    )


@rule(needs="hidden_size")
def feed_forward_divides_over_tensor_ranks(run: RunConfig) -> str | None:
    """Each tensor-parallel rank holds an equal part of the feed-forward block."""
    tp = run.parallel.tensor_model_parallel_size
    if run.model.ffn_size % tp == 0:
        return None
    return f"--ffn-hidden-size {run.model.ffn_size} is not a multiple of --tensor-model-parallel-size {tp}"


@rule(needs="hidden_size")
def hidden_size_divides_over_tensor_ranks(run: RunConfig) -> str | None:
    """The output projection's columns divide evenly."""
    tp = run.parallel.tensor_model_parallel_size
    if (run.model.hidden_size or 0) % tp == 0:
        return None
    return f"--hidden-size {run.model.hidden_size} is not a multiple of --tensor-model-parallel-size {tp}"


@rule(needs="padded_vocab_size")
def padded_vocabulary_divides_over_tensor_ranks(run: RunConfig) -> str | None:
    """Each tensor-parallel rank holds equally many rows of the embedding."""
    tp = run.parallel.tensor_model_parallel_size
    if (run.model.padded_vocab_size or 0) % tp == 0:
        return None
    return f"--padded-vocab-size {run.model.padded_vocab_size} is not a multiple of --tensor-model-parallel-size {tp}"


@rule(needs="num_layers")
def layers_divide_over_stages(run: RunConfig) -> str | None:
    """Every pipeline stage holds equally many layers, unless a flag says otherwise."""
    pp, layers = run.parallel.pipeline_model_parallel_size, run.model.num_layers or 0
    if layers % pp == 0 or given(run, UNEVEN):
        return None
    one, other = "--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split"
    fitting = {1: f"{other} (or {one})", 2: f"{one} with {other}"}.get(-layers % pp)
    count = f"count embedding or head as a layer with {fitting}, " if fitting else ""
    return (
        f"--num-layers {layers} is not a multiple of --pipeline-model-parallel-size {pp}: {count}give an end of the "
        "pipeline its own number with --decoder-first-pipeline-num-layers or --decoder-last-pipeline-num-layers, or "
        "write the stages down with --pipeline-model-parallel-layout"
    )


@rule(needs="num_layers num_layers_per_virtual_pipeline_stage")
def stage_divides_into_chunks_of_layers(run: RunConfig) -> str | None:
    """A stage is several chunks of the asked size."""
    chunk = run.parallel.num_layers_per_virtual_pipeline_stage or 1
    units = units_of_stages(run.parallel, run.model.num_layers or 0) or ()
    wrong = [stage for stage in units if stage % chunk or stage <= chunk]
    if not wrong:
        return None
    return (
        f"--num-layers-per-virtual-pipeline-stage {chunk} does not cut the {wrong[0]} layers of a pipeline stage"
        f"{_counting(run)} into two or more equal chunks"
    )


@rule(needs="num_layers num_virtual_stages_per_pipeline_rank")
def stage_divides_into_number_of_chunks(run: RunConfig) -> str | None:
    """A stage is the asked number of equal chunks."""
    chunks = run.parallel.num_virtual_stages_per_pipeline_rank or 1
    units = units_of_stages(run.parallel, run.model.num_layers or 0) or ()
    wrong = [stage for stage in units if stage % chunks]
    if not wrong or run.parallel.pipeline_model_parallel_layout is not None:
        return None
    return (
        f"--num-virtual-stages-per-pipeline-rank {chunks} does not divide the {wrong[0]} layers of a pipeline stage"
        f"{_counting(run)} (--num-layers {run.model.num_layers})"
    )


@rule()
def interleaving_is_asked_for_in_one_way(run: RunConfig) -> str | None:
    """Two flags say the same thing; give one."""
    parallel = run.parallel
    if parallel.num_layers_per_virtual_pipeline_stage is None or parallel.num_virtual_stages_per_pipeline_rank is None:
        return None
    return (
        "--num-layers-per-virtual-pipeline-stage and --num-virtual-stages-per-pipeline-rank ask for the same thing: "
        "give one of them"
    )


@rule()
def interleaving_needs_several_stages(run: RunConfig) -> str | None:
    """The interleaved schedule exists between stages."""
    if run.parallel.pipeline_model_parallel_size > 1:
        return None
    names = "num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank"
    return without_effect(run, names, "with --pipeline-model-parallel-size 1")


@rule()
def sequence_parallel_needs_tensor_ranks(run: RunConfig) -> str | None:
    """Sequence parallelism splits over the tensor-parallel ranks."""
    if run.parallel.tensor_model_parallel_size > 1:
        return None
    return without_effect(run, "sequence_parallel", "with --tensor-model-parallel-size 1")


@rule(needs="seq_length")
def sequence_divides_over_tensor_ranks(run: RunConfig) -> str | None:
    """With sequence parallelism each rank holds an equal part of the sequence."""
    tp, length = run.parallel.tensor_model_parallel_size, run.train.seq_length or 0
    if not run.parallel.sequence_parallel or length % tp == 0:
        return None
    return f"--seq-length {length} is not a multiple of --tensor-model-parallel-size {tp}, as --sequence-parallel needs"


@rule(needs="seq_length")
def sequence_divides_over_context_ranks(run: RunConfig) -> str | None:
    """Each context-parallel rank holds two equal chunks of the sequence."""
    length, unit = run.train.seq_length or 0, run.sequence_unit
    if run.parallel.context_parallel_size == 1 or length % unit == 0:
        return None
    return f"--seq-length {length} is not a multiple of {unit}, {context_cuts(run)}"


def context_cuts(run: RunConfig) -> str:
    """How a sequence is cut under context parallelism, as the end of a message about its length."""
    parallel = run.parallel
    cuts = f"twice --context-parallel-size {parallel.context_parallel_size}"
    if parallel.sequence_parallel:
        cuts += f" x --tensor-model-parallel-size {parallel.tensor_model_parallel_size} of --sequence-parallel"
    return cuts


@rule()
def overlapped_gather_needs_its_partners(run: RunConfig) -> str | None:
    """Parameters are gathered by the distributed optimizer, after an overlapped reduction."""
    parallel = run.parallel
    if not parallel.overlap_param_gather or (parallel.use_distributed_optimizer and parallel.overlap_grad_reduce):
        return None
    return "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce"


@rule()
def bucket_size_needs_overlapped_reduction(run: RunConfig) -> str | None:
    """megatron-core puts all gradients into one bucket unless the reduction overlaps."""
    if run.parallel.overlap_grad_reduce:
        return None
    return without_effect(run, "ddp_bucket_size", "without --overlap-grad-reduce")


@rule()
def nccl_needs_a_gpu(run: RunConfig) -> str | None:
    """NCCL moves GPU memory only."""
    if run.parallel.distributed_backend != "nccl" or run.parallel.device != "cpu":
        return None
    return "--distributed-backend nccl needs a GPU and --device is cpu: use gloo, or leave the backend out"


@rule()
def transformer_engine_needs_a_gpu(run: RunConfig) -> str | None:
    """Its kernels are for GPUs."""
    if run.parallel.transformer_impl != "transformer_engine" or run.parallel.device != "cpu":
        return None
    return "--transformer-impl transformer_engine needs a GPU and --device is cpu: leave it out, or say local"


@rule()
def compiling_needs_something_to_compile(run: RunConfig) -> str | None:
    """LayerNorm and GELU are single kernels of PyTorch's already; on a GPU losses are compiled too."""
    if not run.parallel.compile or run.parallel.device != "cpu":
        return None
    if run.model.normalization == "RMSNorm" or run.model.swiglu:
        return None
    return without_effect(run, "compile", "without --normalization RMSNorm or --swiglu")


@rule()
def products_add_gradients_on_gpus(run: RunConfig) -> str | None:
    """PyTorch has no such product for a CPU: there is nothing to turn off."""
    if run.parallel.device != "cpu":
        return None
    return without_effect(run, "gradient_accumulation_fusion", "with --device cpu")


def _counting(run: RunConfig) -> str:
    return ", embedding and head counted as asked," if run.parallel.parts_counted_as_layers else ""
