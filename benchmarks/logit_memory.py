#!/usr/bin/env python
"""Memory that logits cost in a training step with a large vocabulary, side by side. Prints one JSON line.

Vocabulary 125,696, 2 x 1024 tokens, hidden size 512, 8 layers, bf16. Sides: our step with the fused output layer and
cross entropy, without, and transformers' LlamaForCausalLM with its own cross entropy; each in a process of its own,
from the same weights, on the same tokens. Losses and gradient norms are compared before anything counts.
The measured part goes from the last hidden states (the trunk's output) to their gradient: forward and backward of
output layer and loss.
`allocated`: the most that torch's allocator holds in it beyond what is there before, by torch.profiler, exact.
`returned`: what any way must hand over, the gradients of the output layer's weight and of the hidden states, bf16.
`logits`: the difference, which is what the way of computing costs at least: where the peak comes before those gradients
are there, it costs all of `allocated`; and a side that adds its weight gradient to the accumulated one at once may stay
below `returned`.
`rss`: the rise of the process's resident memory in the same part, the peak as Linux tells it (VmHWM, reset before);
this has also what libraries take from the system beside torch, and leaves out what freed memory is used again.
`rss_of_run`: its peak over all steps, beyond what is there before the first; optimizer state included.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.measure import memory_mib, restart_peak
from benchmarks.sides.rounds import in_turns, load_average, machine, ratios, refuse_different_steps, spread
from benchmarks.sides.step_sides import (
    LLAMA,
    SHAPE,
    Side,
    connected,
    hugging_face_weights,
    ours,
    random_tokens,
    run_of,
    transformers_side,
)
from benchmarks.sides.workers import Answer, Workers, serve, take_stdout, timed

SIDES = {"fused": "{fused}", "unfused": "{unfused}", "transformers": ""}
"""Side -> flags of the run."""


def main() -> None:
    """Start all sides, compare, measure memory, time in turns; or be one of the sides."""
    options = parse_arguments()
    if options.side:
        work_as(options)
        return
    load, names = load_average(), [name for name in SIDES if name in options.sides]
    with ExitStack() as stack:
        sides: dict[str, Workers] = {}
        for name in names:
            sides[name] = Workers(
                [sys.executable, "-W", "ignore", __file__, *passed_on(name, options)], 1, options.threads
            )
            stack.callback(sides[name].end)
        ask = lambda name, word: sides[name].ask(word)[0]  # noqa: E731
        outcomes = {
            name: [tuple(ask(name, f"step {index}")["outcome"]) for index in range(options.check)] for name in names
        }
        losses = refuse_different_steps(outcomes, names[0])
        # before anything else, so that the peak over all steps is that of plain steps
        memory = {name: ask(name, f"memory {options.check}") for name in names}
        clocks = {name: sides[name].seconds_of for name in names}
        seconds = in_turns(clocks, options.rounds, options.check + 2)
    first = names[0]
    line = {
        "benchmark": "logit_memory",
        "model": f"vocabulary {options.vocab}, {options.layers} layers, h {LLAMA['hidden']}, 2 x {options.seq} tokens",
        "flags": {name: flags_of(name, options) for name in names},
        "mib": memory,
        "times_less": {name: times_less(memory[name], memory[first]) for name in names[1:]},
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio": {name: ratios(seconds[name], seconds[first]) for name in names[1:]},
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
    }
    print(json.dumps(line))


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=list(SIDES))
    parser.add_argument("--fused", default="", help="flags of the fused side")
    parser.add_argument("--unfused", default="--no-cross-entropy-loss-fusion", help="flags of the unfused side")
    parser.add_argument("--rounds", type=int, default=4, help="timed steps of each side")
    parser.add_argument("--check", type=int, default=2, help="first steps, whose losses are compared")
    parser.add_argument("--vocab", type=int, default=125_696)
    parser.add_argument("--layers", type=int, default=LLAMA["layers"])
    parser.add_argument("--seq", type=int, default=LLAMA["seq"])
    parser.add_argument("--threads", type=int, default=LLAMA["threads"])
    parser.add_argument("--side", choices=sorted(SIDES), default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def times_less(memory: dict[str, float], least: dict[str, float]) -> dict[str, float | None]:
    """What a side takes over what the first one does; None where the first takes less than a MiB, or nothing."""
    kinds = ("allocated", "logits", "rss")
    return {kind: round(memory[kind] / least[kind], 2) if least[kind] >= 1 else None for kind in kinds}


def passed_on(name: str, options: argparse.Namespace) -> list[str]:
    """Arguments of a side's process."""
    same = [f"--{key}={getattr(options, key)}" for key in ("fused", "unfused", "vocab", "layers", "seq", "threads")]
    return ["--side", name, *same]


def flags_of(name: str, options: argparse.Namespace) -> str:
    """What a side's run has beyond the shape."""
    return SIDES[name].format(fused=options.fused, unfused=options.unfused)


def work_as(options: argparse.Namespace) -> None:
    """One side: steps and memory on demand."""
    answers = take_stdout()
    shape = LLAMA | {key: getattr(options, key) for key in ("layers", "seq", "threads")}
    run = run_of(f"{SHAPE.format(**shape)} {flags_of(options.side, options)}")
    tokens = random_tokens(options.vocab, shape)
    with connected(run) as world:
        side = built(options, run, world, tokens)
        before = memory_mib("VmRSS")
        restart_peak()

        def memory(index: int) -> Answer:
            of_run = memory_mib("VmHWM") - before
            allocated, returned = allocated_and_returned(side, index, options.vocab)
            return {
                "allocated": round(allocated, 1),
                "returned": round(returned, 1),
                "logits": round(allocated - returned, 1),
                "rss": round(risen(side, index + 1), 1),
                "rss_of_run": round(of_run, 1),
            }

        serve(answers, {"step": timed(side.step), "memory": memory})


def built(options: argparse.Namespace, run: Any, world: Any, tokens: Any) -> Side:
    """The side with our initial weights."""
    parts, side = ours(run, world, tokens, options.vocab)
    if options.side != "transformers":
        return side
    weights = hugging_face_weights(run, parts, options.vocab)
    return transformers_side(run, world, tokens, weights)


def allocated_and_returned(side: Side, index: int, vocab_size: int) -> tuple[float, float]:
    """Largest memory of the measured part in a step beyond what is there before, and what it returns; MiB."""
    from torch.profiler import record_function

    from benchmarks.sides.traces import BEGIN, END, peak_between_marks, trace_of

    def mark(name: str) -> None:
        with record_function(name):
            pass

    sizes: list[tuple[int, ...]] = []

    def begins(hidden: Any) -> None:
        sizes.append(tuple(hidden.shape))
        mark(BEGIN)

    with MeasuredPart(side, begins, lambda _: mark(END)):
        peak = peak_between_marks(trace_of(lambda: side.step(index), memory=True))
    hidden_size = sizes[0][-1]
    rows = sizes[0][0] * sizes[0][1]
    return peak / 2**20, 2 * hidden_size * (rows + vocab_size) / 2**20


def risen(side: Side, index: int) -> float:
    """The rise of resident memory in the measured part of a step, MiB."""
    found: list[float] = []

    def begins(_: Any) -> None:
        restart_peak()
        found.append(memory_mib("VmRSS"))

    with MeasuredPart(side, begins, lambda _: found.append(memory_mib("VmHWM"))):
        side.step(index)
    before, peak = found
    return peak - before


class MeasuredPart:
    """Calls back where the trunk hands over its output, and where the gradient of this arrives.

    Args:
        side: whose steps are watched inside the `with` block.
        begins: called with the hidden states.
        ends: called with their gradient.
    """

    def __init__(self, side: Side, begins: Any, ends: Any) -> None:
        self._side, self._begins, self._ends = side, begins, ends

    def __enter__(self) -> None:
        self._handle = self._side.trunk.register_forward_hook(self._watch)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _watch(self, _module: Any, _inputs: Any, output: Any) -> None:
        hidden = getattr(output, "last_hidden_state", output)
        hidden.register_hook(self._ends)
        self._begins(hidden)


if __name__ == "__main__":
    main()
