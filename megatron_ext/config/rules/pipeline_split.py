"""Rules about pipeline stages that do not hold equally many layers."""

from __future__ import annotations

from megatron_ext.config.pipeline_split import layout_stages, read_layout, units_of_stages
from megatron_ext.config.rules.registry import given, rule, without_effect
from megatron_ext.config.run import RunConfig

ENDS = "num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage"
COUNTED = "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split"
LAYOUT = "pipeline_model_parallel_layout"
UNEVEN = f"{ENDS} {COUNTED} {LAYOUT}"


@rule()
def uneven_stages_are_asked_for_in_one_way(run: RunConfig) -> str | None:
    """Numbers for the ends, counting embedding and loss, or a layout."""
    ways = [flags for names in (ENDS, COUNTED, LAYOUT) if (flags := given(run, names))]
    if len(ways) < 2:
        return None
    return f"{' and '.join(', '.join(flags) for flags in ways)} each say how layers go to stages: give one of them"


@rule()
def uneven_stages_need_several_stages(run: RunConfig) -> str | None:
    """One stage holds everything."""
    if run.parallel.pipeline_model_parallel_size > 1:
        return None
    return without_effect(run, UNEVEN, "with --pipeline-model-parallel-size 1")


@rule(needs="num_layers")
def layers_beside_the_ends_divide_over_stages(run: RunConfig) -> str | None:
    """The stages that have no number of their own share what is left."""
    ends, pp, layers = given(run, ENDS), run.parallel.pipeline_model_parallel_size, run.model.num_layers or 0
    if not ends or pp == 1 or given(run, COUNTED) or units_of_stages(run.parallel, layers) is not None:
        return None
    rest, others = layers - sum(filter(None, map(run.get, ENDS.split()))), pp - len(ends)
    taken = (
        f"{' and '.join(ends)} leave {rest} of --num-layers {layers}"
        if len(ends) > 1
        else (f"{ends[0]} leaves {rest} of --num-layers {layers}")
    )
    if not others:
        return f"{taken}, and --pipeline-model-parallel-size 2 has no other stage"
    return f"{taken} for {others} other stage{'s'[: others > 1]} of --pipeline-model-parallel-size {pp}: " + (
        "at least one each, and equally many" if rest > 0 else "nothing is left for them"
    )


@rule(needs="num_layers")
def layers_and_counted_parts_divide_over_stages(run: RunConfig) -> str | None:
    """What counts as a layer is shared equally."""
    flags, pp, layers = given(run, COUNTED), run.parallel.pipeline_model_parallel_size, run.model.num_layers or 0
    units = layers + len(flags)
    if not flags or units % pp == 0:
        return None
    return (
        f"--num-layers {layers} with {' and '.join(flags)} makes {units}, "
        f"not a multiple of --pipeline-model-parallel-size {pp}"
    )


@rule(needs="num_layers_per_virtual_pipeline_stage")
def chunks_of_uneven_stages_are_numbered(run: RunConfig) -> str | None:
    """Chunks of different stages have different sizes, so no size says how many there are."""
    flags = given(run, f"{ENDS} {LAYOUT}")
    if not flags:
        return None
    return (
        f"--num-layers-per-virtual-pipeline-stage does not go with {' and '.join(flags)}: the chunks of the stages "
        "differ in size; use --num-virtual-stages-per-pipeline-rank"
    )


@rule(needs=LAYOUT)
def layout_is_readable(run: RunConfig) -> str | None:
    """Stages of E, t and L."""
    try:
        read_layout(run.parallel.pipeline_model_parallel_layout or "")
    except ValueError as error:
        return f"--pipeline-model-parallel-layout {run.parallel.pipeline_model_parallel_layout!r}: {error}"
    return None


@rule(needs=LAYOUT)
def layout_begins_with_the_embedding_and_ends_with_the_loss(run: RunConfig) -> str | None:
    """Both stand once, where a sample enters the pipeline and where it leaves it."""
    letters = "|".join(layout_stages(run.parallel) or ("E", "L"))
    if letters.startswith("E") and letters.endswith("L") and letters.count("E") == letters.count("L") == 1:
        return None
    return (
        f"--pipeline-model-parallel-layout {run.parallel.pipeline_model_parallel_layout!r}: the first stage must begin "
        "with the only E and the last stage end with the only L"
    )


@rule(needs=f"num_layers {LAYOUT}")
def layout_holds_every_layer(run: RunConfig) -> str | None:
    """As many t as layers."""
    stages, layers = layout_stages(run.parallel), run.model.num_layers
    number = "".join(stages or ()).count("t")
    if stages is None or number == layers:
        return None
    return f"--pipeline-model-parallel-layout places {number} transformer layers (t), --num-layers is {layers}"


@rule(needs=LAYOUT)
def layout_divides_over_stages(run: RunConfig) -> str | None:
    """Every pipeline rank has equally many chunks."""
    stages, pp = layout_stages(run.parallel), run.parallel.pipeline_model_parallel_size
    if stages is None or len(stages) % pp == 0:
        return None
    return (
        f"--pipeline-model-parallel-layout has {len(stages)} stages, "
        f"not a multiple of --pipeline-model-parallel-size {pp}"
    )


@rule(needs=f"{LAYOUT} num_virtual_stages_per_pipeline_rank")
def layout_agrees_on_virtual_stages(run: RunConfig) -> str | None:
    """The number of chunks may be said again, not otherwise."""
    stages, pp = layout_stages(run.parallel), run.parallel.pipeline_model_parallel_size
    chunks = run.parallel.num_virtual_stages_per_pipeline_rank or 1
    if stages is None or len(stages) == chunks * pp:
        return None
    return (
        f"--pipeline-model-parallel-layout has {len(stages)} stages, --num-virtual-stages-per-pipeline-rank {chunks} x "
        f"--pipeline-model-parallel-size {pp} asks for {chunks * pp}"
    )
