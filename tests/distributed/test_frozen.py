"""Law L1 for a run that trains a part of the model: stages without any trained parameter, tied embeddings, factors."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.processes import run_worker
from tests.distributed.tiny import LAYOUTS, write_dataset

pytestmark = pytest.mark.dist

STEPS = 8
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
PARTS = {
    "embedding and head": ("rope", "embedding.* output_layer.*", "--lr-multipliers embedding.*=2"),
    "embedding": ("rope", "embedding.*", ""),
    "head": ("rope", "output_layer.*", "--optimizer lion --adam-beta2 0.999 --lr 5e-4 --min-lr 0"),
    "tied": ("gpt2", "embedding.word_embeddings.weight", ""),
    "layers": ("rope", "decoder.layers.[02].*", RECOMPUTE),
}
"""Name -> model, what --train-only names, further flags."""
SOME_LAYOUTS = {name: LAYOUTS[2][name] for name in ("tp2", "tp2 sp", "pp2", "pp2 vpp2", "dp2 distopt overlap")}
SHARDED_STAGES = {"pp2 dp2 distopt": LAYOUTS[4]["pp2 dp2 distopt"]}
WHOLLY_FROZEN = ("embedding", "head")
"""Parts that leave a pipeline stage nothing to train; there also the distributed optimizer of that stage is empty."""


def layouts_of(part: str) -> list[str]:
    return ["one", *SOME_LAYOUTS, *(SHARDED_STAGES if part in WHOLLY_FROZEN else ())]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of every part in every layout and in one process."""
    out = tmp_path_factory.mktemp("frozen")
    write_dataset(out / "data")
    for processes, layouts in ((1, {"one": ""}), (2, SOME_LAYOUTS), (4, SHARDED_STAGES)):
        cases = [
            {
                "name": f"{part} {layout}",
                "model": model,
                "flags": f"--train-only {patterns} {flags} {more}",
                "steps": STEPS,
                "data": str(out / "data"),
            }
            for part, (model, patterns, flags) in PARTS.items()
            for layout, more in layouts.items()
            if layout in layouts_of(part)
        ]
        listed = out / f"cases{processes}.json"
        listed.write_text(json.dumps(cases), encoding="utf-8")
        run_worker("tests.distributed.layouts_worker", processes, [str(listed), str(out), str(processes)])
    return out


@pytest.mark.parametrize("part", PARTS)
def test_only_what_is_named_changes_and_alike_in_every_layout(runs: Path, part: str):
    patterns = PARTS[part][1].split()
    with np.load(runs / f"{part} one.npz") as one:
        for layout in layouts_of(part):
            with np.load(runs / f"{part} {layout}.npz") as found:
                np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-5, err_msg=layout)
                np.testing.assert_allclose(found["grad_norms"], one["grad_norms"], rtol=1e-3, err_msg=layout)
                for name in (name[6:] for name in found.files if name.startswith("start/")):
                    stays = np.array_equal(found[f"start/{name}"], found[f"end/{name}"])
                    trains = any(fnmatchcase(name, pattern) for pattern in patterns)
                    assert stays is not trains, f"{layout}: {name}"
        assert one["losses"][-1] < one["losses"][0]
