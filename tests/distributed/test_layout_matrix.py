"""Law L1 over every legal layout that the rules let through: some in `make test`, all in `make test-all`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_ext import log
from tests.distributed.launches import train_cases
from tests.distributed.layout_matrix import AXES, BATCH, FAMILIES, MOST_PROCESSES, Case, covering, legal_cases
from tests.distributed.same_run import assert_same_run
from tests.distributed.tiny import write_dataset

pytestmark = [pytest.mark.dist, pytest.mark.timeout(0)]

STEPS = 2
"""The gradients of the first are compared, and the loss of the second shows that they were applied."""
PROCESSES = (1, 2, 3, 4, 6, 8)
"""Of 5 and of 7 no layout is legal: `subset`, which asks the rules about all numbers, has none. It takes long to ask,
so no test is named after its answer."""


@functools.cache
def subset() -> list[Case]:
    """Few cases in which any two choices meet."""
    return covering(
        [case for model in FAMILIES for n in range(1, MOST_PROCESSES + 1) for case in legal_cases(model, n)]
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and beside it the reference runs of all families: one process, nothing switched on."""
    out = tmp_path_factory.mktemp("matrix")
    write_dataset(out / "data")
    train_cases(out, 1, [(f"{model} reference", model, BATCH, STEPS) for model in FAMILIES])
    return out


def test_legal_choices_meet_in_the_subset_and_others_do_not():
    met = [set(zip(AXES, case.choices, strict=True)) for case in subset()]
    for pair in (
        {("sequence", "sp"), ("virtual", "vpp2")},
        {("virtual", "vpp2"), ("optimizer", "distopt-overlap")},
        {("tensor", "tp4"), ("recompute", "full")},
    ):
        assert any(pair <= choices for choices in met), pair
    assert not any({("sequence", "sp"), ("tensor", "tp1")} <= choices for choices in met)
    assert not any({("virtual", "vpp2"), ("pipeline", "pp1")} <= choices for choices in met)
    assert {case.model for case in subset()} == set(FAMILIES)
    assert {case.processes for case in subset()} == set(PROCESSES)


@pytest.mark.parametrize("processes", PROCESSES)
def test_any_two_choices_together_change_nothing(data: Path, processes: int):
    assert_layouts_change_nothing(data, [case for case in subset() if case.processes == processes])


@pytest.mark.whole
@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("model", FAMILIES)
def test_every_legal_layout_changes_nothing(data: Path, model: str, processes: int):
    assert_layouts_change_nothing(data, list(legal_cases(model, processes)))


def assert_layouts_change_nothing(data: Path, cases: Sequence[Case]) -> None:
    """Train all cases and compare each with its reference; all that differ are told together."""
    started, differing = time.perf_counter(), {}
    for processes in sorted({case.processes for case in cases}):
        train_cases(
            data,
            processes,
            [(case.name, case.model, case.flags, STEPS) for case in cases if case.processes == processes],
        )
    for case in cases:
        try:
            assert_same_run(data / f"{case.model} reference.npz", data / f"{case.name}.npz")
        except AssertionError as error:
            differing[case.name] = str(error).strip().splitlines()[:3]
    log.info(f"{len(cases)} layouts in {time.perf_counter() - started:.0f} s")
    assert not differing, "\n".join(f"{name}: {' '.join(words)}" for name, words in differing.items())
