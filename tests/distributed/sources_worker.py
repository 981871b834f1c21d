"""Trains on a weighted blend in four processes, whole and in parts, and under two layouts; see test_sources.py."""

from __future__ import annotations

import time
from pathlib import Path

from megatron_ext.parallel.world import start_world, stop_model_parallel
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training.loop import introduce, train
from megatron_ext.training.resume import start_state
from megatron_ext.training.stop import StopConditions, StopSignals
from tests.distributed.tiny import tiny_run
from tests.distributed.training import started

WORLD_SIZE = 4
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer"
PP2 = "--pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --micro-batch-size 1"
FLAGS = (
    "--train-iters 14 --lr-warmup-iters 0 --log-interval 3 --eval-iters 0 --blend-reweight-interval 4 --no-progress "
    "--global-batch-size 8"
)
STOP = 7
"""Inside an interval of reports, and of decisions."""


def main(easy: str, hard: str, out: str) -> None:
    """`whole` and `parts` must be equal; `layout` is the whole run under another layout, `moved` a part of it."""
    data = f"--data-path 1 {easy} 1 {hard}"
    with start_world(tiny_run("masked", FLAGS, WORLD_SIZE, Path(easy)), CpuPlatform()):
        stop_model_parallel()
        for name, lives in (
            ("whole", [(TP2, 14)]),
            ("parts", [(TP2, STOP), (TP2, 14)]),
            ("layout", [(PP2, 14)]),
            ("moved", [(TP2, STOP), (PP2, 14)]),
        ):
            for layout, until in lives:
                live(f"{FLAGS} {data} {layout}", Path(out) / name, until)


def live(flags: str, folder: Path, until: int) -> None:
    """One start of a run that goes on from its folder's checkpoint."""
    flags = f"{flags} --save {folder} --load {folder} --exit-interval {until} --log-sample-ids {folder / 'ids.jsonl'}"
    with started(tiny_run("masked", flags, WORLD_SIZE, folder)) as parts:
        introduce(parts, "cpu")
        state = start_state(parts)
        train(parts, state, StopConditions(parts.run, state.iteration, time.monotonic(), StopSignals(enabled=False)))
