#!/usr/bin/env python
"""A training step on two processes of one thread each against one process of two threads. Prints one JSON line.

Sides: one process; tensor parallelism 2; data parallelism 2, one of the two samples each. 58 M parameters in Llama's
shape, 2 x 1024 tokens a step, bf16, the same weights and samples; losses and gradient norms of the first steps are
compared before any time counts. All processes stay alive and take turns of two steps, of which the second counts.
`ratio` is tokens/s over those of one process, round by round. A step of a side ends with its last process.
`collectives` is one profiled step of rank 0 under tensor parallelism: what goes through gloo, by kind and bytes, and
the share of the step during which it communicates, and during which it does nothing else. The profiler slows
everything around the collectives, so the shares are, if anything, too small. Collectives in a group of one rank, such
as megatron-core's of the gradients without data parallelism, are among those listed; they send nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.rounds import in_turns, load_average, machine, ratios, refuse_different_steps, spread
from benchmarks.sides.step_sides import LLAMA, SHAPE, connected, ours, random_tokens, run_of
from benchmarks.sides.workers import Answer, Workers, serve, take_stdout, timed

VOCAB_SIZE = 32000
ONE = "1 process"
SIDES = {ONE: (1, ""), "TP 2": (2, "--tensor-model-parallel-size 2 {tp_flags}"), "DP 2": (2, "{dp_flags}")}
"""Side -> processes, and more flags of its run."""


def main() -> None:
    """Start the processes of all sides, compare, time in turns; or be one of the processes."""
    options = parse_arguments()
    if options.side:
        work_as(options)
        return
    load = load_average()
    with ExitStack() as stack:
        sides: dict[str, Workers] = {}
        for name in SIDES:
            sides[name] = start(name, options)
            stack.callback(sides[name].end)
        checks = {name: [side.ask(f"step {index}") for index in range(options.check)] for name, side in sides.items()}
        outcomes = {name: [tuple(answers[-1]["outcome"]) for answers in steps] for name, steps in checks.items()}
        losses = refuse_different_steps(outcomes, ONE)
        seconds = in_turns({name: side.seconds_of for name, side in sides.items()}, options.rounds, options.check)
        profile = sides["TP 2"].ask(f"profile {options.check + options.rounds}")[0]
    tokens = LLAMA["sequences"] * options.seq
    line = {
        "benchmark": "processes",
        "model": f"{options.layers} layers, h {LLAMA['hidden']}, 2 x {options.seq} tokens, bf16, 2 threads in all",
        "flags": {name: flags_of(name, options) for name in SIDES},
        "tokens_per_s": {name: spread((tokens / value for value in values), 1) for name, values in seconds.items()},
        "ratio": {name: ratios(seconds[ONE], values) for name, values in seconds.items() if name != ONE},
        "collectives": {"TP 2": profile},
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
    }
    print(json.dumps(line))


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="timed steps of each side")
    parser.add_argument("--check", type=int, default=2, help="first steps, whose losses are compared")
    parser.add_argument("--layers", type=int, default=LLAMA["layers"])
    parser.add_argument("--seq", type=int, default=LLAMA["seq"])
    parser.add_argument("--flags", default="", help="more flags of the run, for all sides")
    parser.add_argument("--tp-flags", default="", help="more flags under tensor parallelism, e.g. =--sequence-parallel")
    parser.add_argument("--dp-flags", default="", help="more flags under data parallelism")
    parser.add_argument("--side", choices=sorted(SIDES), default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def flags_of(name: str, options: argparse.Namespace) -> str:
    """What a side's run has beyond the shape."""
    own = SIDES[name][1].format(tp_flags=options.tp_flags, dp_flags=options.dp_flags)
    return " ".join(f"{own} {options.flags}".split())


def start(name: str, options: argparse.Namespace) -> Workers:
    """The processes of one side; they load while others are started."""
    processes = SIDES[name][0]
    command = [sys.executable, "-W", "ignore", __file__, "--side", name]
    command += [f"--layers={options.layers}", f"--seq={options.seq}", f"--flags={options.flags}"]
    command += [f"--tp-flags={options.tp_flags}", f"--dp-flags={options.dp_flags}"]
    return Workers(command, processes, threads=2 // processes)


def work_as(options: argparse.Namespace) -> None:
    """One process of a side: steps and a profile on demand."""
    answers = take_stdout()
    processes = SIDES[options.side][0]
    shape = LLAMA | {"layers": options.layers, "seq": options.seq, "threads": 2 // processes}
    share = shape | {"sequences": 1} if options.side == "DP 2" else shape
    run = run_of(f"{SHAPE.format(**share)} {flags_of(options.side, options)}", processes)
    tokens = random_tokens(VOCAB_SIZE, shape)
    with connected(run) as world:
        step = ours(run, world, tokens, VOCAB_SIZE)[1].step
        serve(answers, {"step": timed(step), "profile": lambda index: profile_of(step, index)})


def profile_of(step: Any, index: int) -> Answer:
    """The collectives of one step on this rank."""
    from torch.profiler import record_function

    from benchmarks.sides.traces import BEGIN, collectives_of, trace_of

    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        with record_function(BEGIN):
            pass
        started = time.perf_counter()
        step(index)
        seconds = time.perf_counter() - started

    found = collectives_of(trace_of(work))
    return {
        "step_seconds": round(seconds, 3),
        "share": round(found["seconds"] / seconds, 3),
        "exposed_share": round(found["exposed_seconds"] / seconds, 3),
        "by_kind": found["by_kind"],
    }


if __name__ == "__main__":
    main()
