"""The length of a step is a pure function of the tokens consumed before it; each stage is reached and left in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.config import RunConfig
from megatron_ext.config.rules import failures
from megatron_ext.config.seq_length_warmup import LengthStage, length_after, parse_length_stage
from megatron_ext.errors import ConfigError
from tests.unit.config.rule_cases import BASE


@pytest.mark.parametrize(
    ("text", "length", "tokens"),
    [
        ("512:2e9", 512, 2_000_000_000),
        ("8:1", 8, 1),
        ("8:1.25E+2", 8, 125),
        ("64:9007199254740993", 64, 9007199254740993),  # no float holds it
    ],
)
def test_stages_are_read_exactly(text: str, length: int, tokens: int):
    assert parse_length_stage(text) == LengthStage(text, length, tokens)


@pytest.mark.parametrize(
    "text",
    ["", "8", "8:", ":8", "8:0", "0:8", "8:0.5", "8:1.23e1", "8:-5", "-8:5", "8:1e-3", "8:nan", "8:inf", "8:1e100",
     "8.0:5", "8:5:5", " 8:5", "8:5 ", "a:b", "8:5\n", "8,5", "8:1_000"],
)  # fmt: skip
def test_anything_else_is_refused(text: str):
    with pytest.raises(ConfigError, match=r"cannot be read.* 512:2e9"):
        parse_length_stage(text)


def test_a_length_holds_from_its_first_token_to_its_last():
    stages = [parse_length_stage(text) for text in ("8:100", "16:50")]
    places = (0, 99, 100, 149, 150, 10**15)
    assert [length_after(stages, place) for place in places] == [8, 8, 16, 16, None, None]
    assert length_after([], 0) is None


def test_the_length_goes_by_where_a_step_begins():
    """Steps of 4 x 32 tokens: 100 tokens reach into the first one, 200 more into the third."""
    run = RunConfig().with_values(seq_length=32, seq_length_warmup=("8:100", "16:200"))
    assert [run.seq_length_at(4 * step) for step in range(5)] == [8, 16, 16, 32, 32]
    assert RunConfig().with_values(seq_length=32).seq_length_at(0) == 32


@given(
    st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 2500), max_size=3),
    st.sampled_from([None, (4, 4, 50), (4, 2, 100)]),
)
def test_in_a_run_that_keeps_the_rules_every_length_trains_a_step_and_they_rise(stages: dict, ramp: tuple | None):
    words = tuple(f"{length}:{tokens}" for length, tokens in sorted(stages.items())) or None
    run = RunConfig().with_values(
        seq_length=16, micro_batch_size=2, global_batch_size=8, train_samples=400, rampup_batch_size=ramp,
        seq_length_warmup=words,
    )  # fmt: skip
    lengths, consumed = [], 0
    for _ in range(run.total_train_iters):
        lengths.append(run.seq_length_at(consumed))
        consumed += run.global_batch_size_at(consumed)
    broken = [name for name in failures(run) if name.startswith("length_stages")]
    if not broken:
        assert lengths == sorted(lengths)
        assert set(lengths) == {16, *stages}


RAMP = {"train_iters": None, "train_samples": 1000, "rampup_batch_size": (4, 4, 50)}


@pytest.mark.parametrize(
    ("stages", "values", "name"),
    [
        ("32:256", {}, "length_stages_cut_samples_into_equal_sequences"),
        ("64:256", {}, "length_stages_cut_samples_into_equal_sequences"),
        ("16:256 8:256", {}, "length_stages_rise"),
        ("8:256 16:255", {}, "length_stages_hold_a_step"),
        ("8", {}, "length_stages_are_readable"),
        ("8:2304", {"train_iters": None, "train_samples": 79}, "length_stages_end_before_the_run"),
        # the batch grows from 4 to 8 samples with the 50th: 128 tokens hold a step before it, 255 none after it
        ("8:127", RAMP, "length_stages_hold_a_step"),
        ("8:1600 16:255", RAMP, "length_stages_hold_a_step"),
    ],
)
def test_stages_that_break_a_rule(stages: str, values: dict, name: str):
    assert name in failures(BASE.with_values(seq_length_warmup=tuple(stages.split()), **values))


def test_short_stages_of_small_batches_keep_the_rules():
    assert failures(BASE.with_values(seq_length_warmup=("8:128", "16:1472"), **RAMP)) == {}
    assert failures(BASE.with_values(seq_length_warmup=("1:256",))) == {}, "heads are cut, not sequences"
