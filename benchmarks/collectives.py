#!/usr/bin/env python
"""Small all-reduces between the processes of one machine, scheduled as batch work or not. Prints one JSON line.

Sides, for each number of ranks: all of them in a group of a run on a CPU, which schedules itself as batch work
(`prefer_throughput` of `megatron_ext/platform/cpu.py`), and in one that the kernel schedules by its default. Both are
groups of the same processes and take turns; sums are checked before any time counts. `milliseconds` are those of one
all-reduce until the last rank has it; `ratio` is the default's time over the other's, round by round.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.rounds import in_turns, load_average, machine, ratios, spread
from benchmarks.sides.step_sides import LLAMA, SHAPE, connected, run_of
from benchmarks.sides.workers import Answer, Workers, serve, take_stdout, timed

DEFAULT, BATCH = "default", "batch"


def main() -> None:
    """Start the processes, compare, time in turns; or be one of the processes."""
    options = parse_arguments()
    if options.rank_of:
        work_as(options)
        return
    load = load_average()
    with ExitStack() as stack:
        sides: dict[str, tuple[Workers, str]] = {}
        for ranks in options.ranks:
            command = [sys.executable, "-W", "ignore", __file__, f"--rank-of={ranks}"]
            command += [f"--numbers={options.numbers}", f"--calls={options.calls}"]
            workers = Workers(command, ranks, threads=1)
            stack.callback(workers.end)
            sides |= {f"{ranks} {policy}": (workers, policy) for policy in (DEFAULT, BATCH)}
        refuse_different_sums({name: workers.ask(policy) for name, (workers, policy) in sides.items()})
        turns = {name: functools.partial(slowest, *side) for name, side in sides.items()}
        seconds = in_turns(turns, options.rounds, 0)
    line = {
        "benchmark": "collectives",
        "what": f"all_reduce of {options.numbers} fp32 numbers over gloo",
        "milliseconds": {
            name: spread((1000 * value / options.calls for value in values), 2) for name, values in seconds.items()
        },
        "ratio": {
            str(ranks): ratios(seconds[f"{ranks} {DEFAULT}"], seconds[f"{ranks} {BATCH}"]) for ranks in options.ranks
        },
        "rounds": options.rounds,
        **machine(load),
    }
    print(json.dumps(line))


def refuse_different_sums(answers: Mapping[str, list[Answer]]) -> None:
    """End the benchmark where a sum of ones, one of each rank, is not the number of ranks."""
    for name, ranks in answers.items():
        sums = {answer["outcome"] for answer in ranks}
        if sums != {float(len(ranks))}:
            raise SystemExit(f"{name}: a sum of {len(ranks)} ones is {sums}")


def slowest(workers: Workers, policy: str, _: int) -> float:
    """Seconds until the last rank has made its calls."""
    return max(float(answer["seconds"]) for answer in workers.ask(policy))


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8], help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=50, help="all-reduces that are timed together")
    parser.add_argument("--numbers", type=int, default=1536, help="numbers that are summed")
    parser.add_argument("--rank-of", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def work_as(options: argparse.Namespace) -> None:
    """One process of a number of ranks: all-reduces in either group on demand."""
    answers = take_stdout()
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_ext.parallel.world import start_layout, stop_model_parallel
    from megatron_ext.platform.cpu import CpuPlatform

    run = run_of(SHAPE.format(**LLAMA), options.rank_of)
    with connected(run):
        policies = {BATCH: os.sched_getscheduler(0), DEFAULT: os.SCHED_OTHER}
        # the groups of another layout, whose threads inherit another policy than those of the world
        stop_model_parallel()
        os.sched_setscheduler(0, policies[DEFAULT], os.sched_param(0))
        with start_layout(run, CpuPlatform()):
            groups = {BATCH: dist.group.WORLD, DEFAULT: parallel_state.get_data_parallel_group()}

            def work(policy: str) -> float:
                os.sched_setscheduler(0, policies[policy], os.sched_param(0))
                ones = torch.ones(options.numbers)
                for _ in range(options.calls):
                    dist.all_reduce(ones.fill_(1.0), group=groups[policy])
                return float(ones.max())

            serve(answers, {policy: timed(lambda _, policy=policy: work(policy)) for policy in groups})


if __name__ == "__main__":
    main()
