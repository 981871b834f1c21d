"""Law L1: from one seed, every layout starts from the same full weights bit for bit and gives the same loss curve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import LAYOUTS, TP4, write_dataset

pytestmark = pytest.mark.dist

STEPS = 50
RELATIVE = 1e-5


def cases_of(processes: int) -> dict[tuple[str, str], str]:
    """Return (model, layout) -> flags of the cases with this many processes."""
    layouts = LAYOUTS[processes]
    cases = {(model, name): flags for model in ("rope", "alibi") for name, flags in layouts.items()}
    few = {1: [], 2: ["tp2 sp", "pp2 vpp2"], 4: ["tp2 sp pp2 vpp2", "tp2 sp dp2 distopt"]}[processes]
    cases |= {(model, name): layouts[name] for model in ("gqa", "gpt2") for name in few}
    if processes == 4:
        cases |= {("gqa", name): flags for name, flags in TP4.items()}
    return cases


ALL_CASES = [(processes, *case) for processes in LAYOUTS for case in cases_of(processes)]


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train all cases in one launch per number of processes; a folder of results."""
    out = tmp_path_factory.mktemp("layouts")
    write_dataset(out / "data")
    for processes in LAYOUTS:
        cases = [(model, name, flags) for (model, name), flags in cases_of(processes).items()]
        if processes == 1:
            cases += [(model, "reference", "") for model in ("rope", "alibi", "gqa", "gpt2")]
        listed = [
            {"name": f"{model} {name}", "model": model, "flags": flags, "steps": STEPS, "data": str(out / "data")}
            for model, name, flags in cases
        ]
        (out / f"cases{processes}.json").write_text(json.dumps(listed), encoding="utf-8")
        run_worker(
            "tests.distributed.layouts_worker",
            processes,
            [str(out / f"cases{processes}.json"), str(out), str(processes)],
        )
    return out


@pytest.mark.parametrize(("processes", "model", "layout"), ALL_CASES)
def test_layout_gives_the_same_run(curves: Path, processes: int, model: str, layout: str):
    with np.load(curves / f"{model} reference.npz") as reference, np.load(curves / f"{model} {layout}.npz") as found:
        for name in (name for name in reference.files if name.startswith("start/")):
            assert np.array_equal(reference[name], found[name]), f"{name} starts from other weights"
        np.testing.assert_allclose(found["losses"], reference["losses"], rtol=RELATIVE)
        np.testing.assert_allclose(found["validation"], reference["validation"], rtol=RELATIVE)
        np.testing.assert_allclose(found["grad_norms"], reference["grad_norms"], rtol=1e-3)
        assert set(reference.files) == set(found.files)


def test_the_reference_learns(curves: Path):
    """A curve that does not fall would make the comparison above an empty one."""
    for model in ("rope", "alibi", "gqa", "gpt2"):
        with np.load(curves / f"{model} reference.npz") as reference:
            assert reference["losses"][-1] < 0.75 * reference["losses"][0], model


def test_models_differ_from_each_other(curves: Path):
    """RoPE and ALiBi start from the same weights; a position embedding that did nothing would show here."""
    with np.load(curves / "rope reference.npz") as rope, np.load(curves / "alibi reference.npz") as alibi:
        assert not np.allclose(rope["losses"], alibi["losses"], rtol=1e-4)
