"""Law L1: from one seed, every layout starts from the same full weights bit for bit and gives the same loss curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.launches import train_cases
from tests.distributed.same_run import assert_same_run
from tests.distributed.tiny import CP4, LAYOUTS, MODELS, SHARED_HEADS, TIED4, TP4, UNEVEN, write_dataset

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]  # the first test waits for all launches

STEPS = 50
"""Of "rope", which goes through every layout; the other models, which differ in what is cut, run fewer."""
FEWER_STEPS = {
    "alibi": 20,
    "gqa": 20,
    "gpt2": 20,
    "wide": 20,
    "isolated": 20,
    "sharp": 20,
    "restarted": 20,
    "masked": 20,
    "lengthened": 20,
    "normed": 20,
    "multiplied": 20,
    "bloom": 20,
    "bloom_learned": 20,
    "moss": 20,
    "one_group": 20,
    "two_groups": 25,
    "yuan": 20,
    "noisy": 20,
    "noisy_learned": 20,
}
LENGTHENED = {1: ["micro-batch 1"], 2: ["tp2 sp", "pp2 vpp2", "dp2 distopt"], 4: ["tp2 sp pp2 vpp2"]}
"""Processes -> layouts that must know the length of a step: as slices, as messages, or not at all."""
OUTPUTS = {
    1: [],
    2: [("normed", name) for name in ("tp2", "tp2 sp", "dp2 distopt overlap")]
    + [(model, "pp2 vpp2") for model in ("normed", "multiplied")],
    4: [("normed", "tp2 sp pp2 vpp2")],
}
"""Processes -> (model, layout) that cut what stands before the first layer and behind the last in every way."""

BLOCKS = {
    "bloom": {1: ["recompute modules"], 2: ["tp2 sp", "pp2 vpp2"], 4: ["tp2 sp pp2 vpp2"]},
    "bloom_learned": {2: ["tp2", "tp2 sp"]},
    "moss": {1: ["recompute modules"], 2: ["tp2", "tp2 sp", "pp2 vpp2"]},
    "yuan": {1: ["recompute full"], 2: ["tp2", "tp2 sp", "pp2 vpp2"]},
    "noisy": {1: ["micro-batch 1", "recompute full"], 2: ["tp2 sp", "pp2 vpp2", "dp2 distopt"]},
    "noisy_learned": {2: ["tp2", "tp2 sp"]},
}
"""Model -> processes -> the layouts that treat its blocks differently."""

STAGES = {
    2: [("rope", "pp2 1+3"), ("gpt2", "pp2 vpp3 counted"), ("rope", "pp2 vpp2 layout")],
    4: [("gpt2", "pp4 layout"), ("rope", "tp2 sp pp2 3+1"), ("rope", "pp2 vpp2 layout dp2 distopt overlap")],
}
HEADS = {2: [("one_group", "tp2 sp")], 4: [("one_group", "tp4"), ("two_groups", "tp4"), ("two_groups", "tp4 sp")]}
"""Processes -> (model, layout) with unequal stages, and with fewer key/value heads than tensor-parallel ranks."""

CONTEXT = {
    1: [],
    2: [(model, "cp2") for model in ("gqa", "isolated", "restarted", "lengthened", "normed", "gpt2", "noisy", "yuan")],
    4: [
        ("alibi", "tp2 sp cp2"),
        ("moss", "tp2 sp cp2"),
        ("isolated", "cp2 pp2 vpp2"),
        ("masked", "cp2 dp2 distopt"),
        ("gqa", "cp4"),
        ("yuan", "tp2 sp cp2"),
        ("yuan", "cp4"),
    ],
}
"""Processes -> (model, layout) of ranks that share sequences: each kind of position, mask and loss that they cut."""


def cases_of(processes: int) -> dict[tuple[str, str], str]:
    """Return (model, layout) -> flags of the cases with this many processes."""
    layouts = LAYOUTS[processes]
    cases = {("rope", name): flags for name, flags in layouts.items()}
    few = {1: [], 2: ["tp2 sp", "pp2 vpp2"], 4: ["tp2 sp pp2 vpp2", "tp2 sp dp2 distopt"]}[processes]
    cases |= {(model, name): layouts[name] for model in ("alibi", "gqa", "gpt2") for name in few}
    apart = {1: ["recompute full", "recompute selective"], 2: ["tp2 sp", "pp2 vpp2"], 4: ["pp4"]}[processes]
    cases |= {("isolated", name): layouts[name] for name in apart}
    cases |= {("lengthened", name): layouts[name] for name in LENGTHENED[processes]}
    cases |= {(model, name): layouts[name] for model, name in OUTPUTS[processes]}
    cases |= {(model, name): layouts[name] for model, names in BLOCKS.items() for name in names.get(processes, [])}
    cases |= {(model, name): UNEVEN[processes][name] for model, name in STAGES.get(processes, [])}
    cases |= {(model, name): SHARED_HEADS[processes][name] for model, name in HEADS.get(processes, [])}
    cases |= {(model, name): {**layouts, **CP4}[name] for model, name in CONTEXT[processes]}
    if processes == 2:
        cases |= {("masked", "dp2 distopt"): layouts["dp2 distopt"]}
    if processes == 4:
        cases |= {("restarted", "tp2 sp pp2 vpp2"): layouts["tp2 sp pp2 vpp2"]}
        cases |= {("gqa", name): flags for name, flags in TP4.items()}
        cases |= {("gpt2", name): flags for name, flags in TIED4.items()}
    return cases


def steps(model: str) -> int:
    """How long the runs of a model are."""
    return FEWER_STEPS.get(model, STEPS)


ALL_CASES = [(processes, *case) for processes in LAYOUTS for case in cases_of(processes)]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all cases, a few in a launch; a folder of results."""
    out = tmp_path_factory.mktemp("layouts")
    write_dataset(out / "data")
    for processes in LAYOUTS:
        cases = [(model, name, flags) for (model, name), flags in cases_of(processes).items()]
        if processes == 1:
            cases += [(model, "reference", "") for model in MODELS]
        train_cases(out, processes, [(f"{model} {name}", model, flags, steps(model)) for model, name, flags in cases])
    return out


@pytest.mark.parametrize(("processes", "model", "layout"), ALL_CASES)
def test_layout_gives_the_same_run(curves: Path, processes: int, model: str, layout: str):
    assert_same_run(curves / f"{model} reference.npz", curves / f"{model} {layout}.npz")


def test_the_reference_learns(curves: Path):
    """A curve that does not fall would make the comparison above an empty one."""
    for model in MODELS:
        with np.load(curves / f"{model} reference.npz") as reference:
            share = 0.75 if model not in FEWER_STEPS else 0.9
            # the batches of four samples differ by 5 %: the last one alone says which samples it holds
            assert reference["losses"][-5:].mean() < share * reference["losses"][0], model


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rope", "alibi"),
        ("gqa", "isolated"),
        ("sharp", "restarted"),
        ("rope", "masked"),
        ("sharp", "lengthened"),
        ("alibi", "normed"),
        ("gpt2", "multiplied"),
        ("lengthened", "noisy"),
        ("bloom_learned", "noisy_learned"),
    ],
)
def test_models_differ_from_each_other(curves: Path, one: str, other: str):
    """Each pair starts from the same weights; positions, cuts or masks that did nothing would show here."""
    with np.load(curves / f"{one} reference.npz") as first, np.load(curves / f"{other} reference.npz") as second:
        queries = "start/decoder.layers.0.self_attention.linear_qkv.weight"
        assert np.array_equal(first[queries], second[queries])
        steps = min(len(first["losses"]), len(second["losses"]))
        assert not np.allclose(first["losses"][:steps], second["losses"][:steps], rtol=1e-4)
