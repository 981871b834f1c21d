"""A blend of two views of random tokens, and runs of the loop on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_ext.data.blend import BlendView
from megatron_ext.data.spread_mixture import WeightedMixture
from megatron_ext.training.loop import train
from megatron_ext.training.metrics import TrainState, read_records
from megatron_ext.training.resume import start_state
from megatron_ext.training.stop import StopConditions, StopSignals
from tests.unit.tiny import VOCAB_SIZE, TokenView, tiny_components, tiny_run

if TYPE_CHECKING:
    from megatron_ext.parallel.world import World

FILES = ("metrics.jsonl", "sources.jsonl", "blend_weights.jsonl", "ids.jsonl")
TIMES = ("iteration_time_s", "tokens_per_s", "tflops_per_rank")


class CountingView(TokenView):
    """Windows that count upwards: much easier than random tokens."""

    def __init__(self, samples: int = 12) -> None:
        super().__init__(samples=samples)
        self.tokens = (np.arange(samples)[:, None] + np.arange(17)) % (VOCAB_SIZE - 1)


def easy_and_hard(weights: tuple[float, float] = (0.5, 0.5)) -> BlendView:
    """Two sources: `easy` counts, `hard` is noise."""
    easy, hard = CountingView(), TokenView(seed=3, samples=400)
    easy.source_names, hard.source_names = ("easy",), ("hard",)
    return BlendView([easy, hard], WeightedMixture(weights))


def run_blend(world: World, folder: Path, view: BlendView | None = None, **values: object) -> TrainState:
    """Train on a blend with every file in `folder`, from its checkpoint where it has one."""
    settings = {
        "train_iters": 12, "log_interval": 4, "blend_reweight_interval": 3, "save": str(folder), "load": str(folder),
        "log_sample_ids": str(folder / "ids.jsonl"), "eval_iters": 0, **values,
    }  # fmt: skip
    parts = tiny_components(tiny_run(**settings), world, train=view or easy_and_hard())
    state = start_state(parts)
    train(parts, state, StopConditions(parts.run, state.iteration, time.monotonic(), StopSignals(enabled=False)))
    return state


def records_of(folder: Path) -> dict[str, list[dict]]:
    """What a run wrote, without times."""
    return {
        name: [{k: v for k, v in record.items() if k not in TIMES} for record in read_records(folder / name)]
        for name in FILES
    }
