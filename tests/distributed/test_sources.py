"""Laws L2 and L3 of a blend whose weights follow the losses: over a stop, over layouts, and told without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.training.metrics import read_records
from tests.distributed.processes import run_worker
from tests.distributed.sources_worker import STOP, WORLD_SIZE
from tests.distributed.tiny import VOCAB_SIZE, write_dataset
from tools import explain_batch

pytestmark = pytest.mark.dist

TIMES = {"iteration_time_s", "tokens_per_s", "tflops_per_rank"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of four runs: whole, parts, layout, moved."""
    folder = tmp_path_factory.mktemp("sources")
    generator = np.random.default_rng(1)
    write_dataset(folder / "easy")
    noise = [np.append(generator.integers(0, VOCAB_SIZE - 1, 60), VOCAB_SIZE - 1) for _ in range(300)]
    write_indexed(folder / "hard", noise, np.uint16)
    arguments = [str(folder / name) for name in ("easy", "hard", "runs")]
    run_worker("tests.distributed.sources_worker", WORLD_SIZE, arguments)
    return folder / "runs"


def lines(folder: Path, name: str) -> list[dict]:
    """The records of a file, without times."""
    return [{key: v for key, v in record.items() if key not in TIMES} for record in read_records(folder / name)]


def test_stopped_inside_an_interval_and_resumed_is_bit_equal(runs: Path):
    for name, count in (("metrics.jsonl", 14), ("sources.jsonl", 4), ("blend_weights.jsonl", 3), ("ids.jsonl", 14)):
        whole = lines(runs / "whole", name)
        assert len(whole) == count and lines(runs / "parts", name) == whole, name


def test_the_harder_source_is_seen_more(runs: Path):
    weights = [record["weights"][1] for record in lines(runs / "whole", "blend_weights.jsonl")]
    assert weights == sorted(weights) and weights[-1] > 0.51


def test_what_was_decided_holds_in_another_layout_that_goes_on(runs: Path):
    whole, moved = (lines(runs / name, "blend_weights.jsonl") for name in ("whole", "moved"))
    assert moved[0] == whole[0] and moved[0]["iteration"] < STOP
    until = moved[1]["iteration"]
    assert lines(runs / "moved", "ids.jsonl")[:until] == lines(runs / "whole", "ids.jsonl")[:until]


def test_layouts_count_the_same_samples_and_tokens_and_find_the_same_loss(runs: Path):
    """Before the first decision, which rests on losses that are equal to 1e-5 only, this holds in any case."""
    whole, layout = (lines(runs / name, "sources.jsonl") for name in ("whole", "layout"))
    weights = [[record["weights"] for record in lines(runs / n, "blend_weights.jsonl")] for n in ("whole", "layout")]
    assert np.allclose(weights[0][0], weights[1][0], atol=0.006)
    for one, other in zip(whole, layout, strict=True):
        if weights[0] == weights[1] or one is whole[0]:
            for source, same in zip(one["sources"], other["sources"], strict=True):
                assert source["samples"] == same["samples"] and source["tokens"] == same["tokens"]
                assert source["loss"] == pytest.approx(same["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["whole", "parts", "layout", "moved"])
def test_explain_batch_tells_the_samples_of_every_step(name: str, runs: Path, capsys: pytest.CaptureFixture):
    for record in lines(runs / name, "ids.jsonl"):
        capsys.readouterr()
        explain_batch.main(f"--run-folder {runs / name} --step {record['iteration']} --json".split())
        assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
