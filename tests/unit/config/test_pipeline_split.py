"""How layers go to stages is megatron-core's own arithmetic, and the layers follow each other through the chunks."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_ext.config import RunConfig, to_core
from megatron_ext.config.pipeline_split import read_layout
from megatron_ext.config.rules import failures

LETTERS = {"embedding": "E", "decoder": "t", "loss": "L"}
ATOM = st.tuples(st.sampled_from("EtL|"), st.sampled_from(["", "*0", "*1", "*3", "*12"])).map("".join)
GROUP = st.tuples(st.lists(ATOM, min_size=1, max_size=4).map("".join), st.integers(0, 4)).map("({0[0]})*{0[1]}".format)
TEXT = st.lists(st.one_of(ATOM, GROUP, st.just(",")), min_size=1, max_size=6).map("".join)


def core_stages(text: str) -> tuple[str, ...]:
    """The same text as megatron-core reads it."""
    stages = PipelineParallelLayerLayout.parse_str_to_list(text)
    return tuple("".join(LETTERS[layer.name] for layer in stage) for stage in stages)


@given(TEXT)
def test_a_layout_is_read_as_megatron_core_reads_it(text: str):
    assert read_layout(text) == core_stages(text)


def test_the_example_of_the_docstring():
    assert read_layout("Et*3|(tt|)*2,tL") == ("Ettt", "tt", "tt", "tL")


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Ett|mL", "mL"),
        ("Et t", " t"),
        ("Et*", "*"),
        ("Et*1000|L", "0|L"),
        ("(tt)", "(tt)"),
        ("((t)*2)*2", "((t)*2)*2"),
        ("E()*3", "()*3"),
        ("t)*2", ")*2"),
        ("e|l", "e|l"),
    ],
)
def test_what_is_no_layout_is_refused_where_it_stops_being_one(text: str, rest: str):
    with pytest.raises(ValueError, match="is no part of a layout") as error:
        read_layout(text)
    assert str(error.value).startswith(repr(rest))


def run_of(pp: int, layers: int, **values: object) -> RunConfig:
    shape = {"num_layers": layers, "hidden_size": 8, "num_attention_heads": 1, "global_batch_size": 60}
    return RunConfig().with_values(world_size=pp, pipeline_model_parallel_size=pp, **shape, **values)


@given(
    pp=st.integers(2, 5),
    each=st.integers(2, 7),
    chunks=st.sampled_from([None, None, 2, 3]),
    first=st.none() | st.integers(1, 4),
    last=st.none() | st.integers(1, 4),
    embedding=st.booleans(),
    loss=st.booleans(),
)
def test_chunks_are_megatron_cores_and_follow_each_other(pp, each, chunks, first, last, embedding, loss):
    """Every chunk has `each` layers, but those of the first and the last stage where they are named or counted.

    Two at least, for the embedding and the head may each take the place of one.
    """
    counted = {"embedding": embedding, "loss": loss} if first is None and last is None else {}
    named = [number * (chunks or 1) for number in (first, last) if number is not None]
    layers = sum(named) + each * (chunks or 1) * (pp - len(named)) - sum(counted.values())
    run = run_of(
        pp,
        layers,
        num_virtual_stages_per_pipeline_rank=chunks,
        num_layers_in_first_pipeline_stage=first and first * (chunks or 1),
        num_layers_in_last_pipeline_stage=last and last * (chunks or 1),
        **{f"account_for_{what}_in_pipeline_split": value for what, value in counted.items()},
    )
    assert failures(run, "model") == {}
    core = to_core.transformer_config(run, "cpu")
    before = 0
    for chunk, rank in itertools.product(range(chunks or 1), range(pp)):
        stage = None if chunks is None else chunk
        number = run.layers_per_chunk[rank][chunk]
        assert get_num_layers_to_build(core, vp_stage=stage, pp_rank=rank) == number
        assert get_transformer_layer_offset(core, vp_stage=stage, pp_rank=rank) == before
        before += number
    assert before == layers


@pytest.mark.parametrize(("pp", "chunks"), [(2, ((3, 4), (1, 2))), (4, ((3,), (1,), (4,), (2,)))])
def test_a_layout_deals_its_stages_to_the_ranks_in_turn(pp: int, chunks: tuple):
    text = "Et*3|t|(tt)*2|,ttL"
    run = run_of(pp, 10, pipeline_model_parallel_layout=text)
    assert failures(run, "model") == {}
    assert run.layers_per_chunk == chunks
    core = to_core.transformer_config(run, "cpu").pipeline_model_parallel_layout
    assert chunks == tuple(
        tuple(sum(part.name == "decoder" for part in part_of) for part_of in rank) for rank in core.layout
    )
    assert run.virtual_pipeline_model_parallel_size == (2 if pp == 2 else None)


def test_settings_that_leave_no_split_have_no_chunks():
    assert run_of(2, 5).layers_per_chunk == run_of(2, 5).layers_per_stage == ()
    assert run_of(2, 4, pipeline_model_parallel_layout="Ett|tt|L").layers_per_chunk == ()
    unreadable = run_of(2, 4, pipeline_model_parallel_layout="nothing")
    assert unreadable.layers_per_stage == (2, 2) and "layout_is_readable" in failures(unreadable, "model")
