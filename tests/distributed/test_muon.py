"""Law L1 for Muon: the matrices that tensor-parallel ranks put together are those of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import LAYOUTS, write_dataset

pytestmark = pytest.mark.dist

STEPS = 12
MUON = "--optimizer muon --muon-extra-scale-factor 0.2"
KINDS = {
    "split": ("gqa", MUON),
    "whole": ("gqa", f"{MUON} --muon-no-split-qkv --muon-use-nesterov --muon-scale-mode unit_rms_norm"),
    "gelu": ("gpt2", MUON),
}
"""Name -> model, flags: gated and plain feed-forward blocks, queries, keys and values apart and together."""
SOME_LAYOUTS = {name: LAYOUTS[2][name] for name in ("tp2", "tp2 sp", "pp2 vpp2", "dp2 overlap")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of every kind in every layout and in one process."""
    out = tmp_path_factory.mktemp("muon")
    write_dataset(out / "data")
    for processes, layouts in ((1, {"one": ""}), (2, SOME_LAYOUTS)):
        cases = [
            {
                "name": f"{kind} {layout}",
                "model": model,
                "flags": f"{flags} {more}",
                "steps": STEPS,
                "data": str(out / "data"),
            }
            for kind, (model, flags) in KINDS.items()
            for layout, more in layouts.items()
        ]
        listed = out / f"cases{processes}.json"
        listed.write_text(json.dumps(cases), encoding="utf-8")
        run_worker("tests.distributed.layouts_worker", processes, [str(listed), str(out), str(processes)])
    return out


@pytest.mark.parametrize("layout", SOME_LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_run(runs: Path, kind: str, layout: str):
    with np.load(runs / f"{kind} one.npz") as one, np.load(runs / f"{kind} {layout}.npz") as found:
        np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-5)
        np.testing.assert_allclose(found["validation"], one["validation"], rtol=1e-5)
        assert one["losses"][-1] < one["losses"][0]


def test_the_kinds_differ(runs: Path):
    with np.load(runs / "split one.npz") as one, np.load(runs / "whole one.npz") as other:
        assert not np.allclose(one["losses"], other["losses"], rtol=1e-4)
