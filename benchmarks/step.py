#!/usr/bin/env python
"""One training step, side by side. Prints one JSON line per case.

`step`: this project, transformers (eager, compiled), megatron-core's local spec. On a CPU 58 M parameters in Llama's
shape, 2 x 1024 tokens; with `--device cuda` 0.94 10^9, 4 x 2048; bf16 compute. Every side is a process of its own, as
its users start it; all stay alive and take turns of two steps, of which the second counts. They start from the same
weights and see the same tokens; losses and gradient norms of the first steps are compared before any time counts.
`ratio` is theirs over ours in seconds, round by round: above 1 we are faster. In the same rounds stand the bf16 matrix
products of the model's own shapes (forward, both gradients; qkv, proj, fc1, fc2, output layer; as often as a step has
them; operands warm). `share_of_products` is a side's model FLOP/s over theirs, where model FLOPs are those of
`megatron_ext/training/flops.py`: projections, causal attention, logits; no norms, no optimizer. One large square
product in bf16 and in fp32 stands beside it as the peak of the library. On a GPU `peak_mib` is the most memory that
torch has held for a side, which includes the fp32 master weights that transformers' side does without.
`alibi`: our step with ALiBi against our step with RoPE, 40 heads. The heads keep the 64 channels that they have in the
58 M model (--kv-channels), 4 layers: about as many operations as `step`, a fifth of them attention, where the bias
makes the difference. Both start from the same weights; positions change losses, so the first ones only have to be near
each other.
`alibi-wide`: the same with heads that add up to the hidden size, 2560, as large models have it: one layer, in which
attention is a fiftieth. More operations than `step`; not run unless asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.matrix_rate import products_of, rate_of, square
from benchmarks.sides.rounds import (
    in_turns,
    load_average,
    machine,
    ratios,
    refuse_different,
    refuse_different_steps,
    spread,
)
from benchmarks.sides.step_sides import (
    BUILDERS,
    LARGE,
    LLAMA,
    SHAPE,
    Side,
    connected,
    hugging_face_weights,
    ours,
    random_tokens,
    run_of,
)
from benchmarks.sides.workers import PAUSE, Answer, Workers, serve, take_stdout, timed

VOCAB_SIZE = 32000
OURS, PRODUCTS = "ours", "products"
CASES = ("step", "alibi", "alibi-wide")
ALIBI = {
    "alibi": ({"heads": 40, "layers": 4}, "--kv-channels 64"),
    "alibi-wide": ({"heads": 40, "layers": 1, "hidden": 2560, "ffn": 6912}, ""),
}
POSITIONS = ("alibi", "rope")
NEAR = 0.02
"""Of losses with different positions, relatively: at the beginning all are near log(vocabulary)."""


def main() -> None:
    """Run the cases one after the other; or be the process of one side of one case."""
    options = parse_arguments()
    if options.side:
        work_as(options, options.case[0])
        return
    for case in options.case:
        print(json.dumps(step_case(options) if case == "step" else alibi_case(options, case)), flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=["step", "alibi"])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--check", type=int, default=2, help="first steps, whose losses are compared")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=LLAMA["threads"], help="of a process, on a CPU")
    parser.add_argument("--layers", type=int, default=None, help="default: what the case says")
    parser.add_argument("--seq", type=int, default=None, help="default: 1024, on a GPU 2048")
    parser.add_argument(
        "--against",
        nargs="*",
        choices=sorted(BUILDERS),
        help="default: all; on a GPU transformers' two, because all sides together need more than 80 GB",
    )
    parser.add_argument("--flags", default="", help='more flags of the run, for our side alone, e.g. ="--a 1 --b"')
    parser.add_argument("--peak-size", type=int, default=4096, help="rows of the large square product")
    parser.add_argument("--side", choices=(OURS, PRODUCTS, *BUILDERS, *POSITIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.against is None:
        options.against = [name for name in sorted(BUILDERS) if options.device == "cpu" or "transformers" in name]
    return options


def shape_of(options: argparse.Namespace, **changes: Any) -> dict[str, Any]:
    """The shape of a case's model and batch."""
    given = {name: getattr(options, name) for name in ("layers", "seq", "threads") if getattr(options, name)}
    return (LARGE if options.device == "cuda" else LLAMA) | changes | given


def alibi_shape(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """That of a case which compares positions, whatever they are."""
    return shape_of(options, **ALIBI[case][0])


def step_case(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the first steps of all sides, time them and the products in turns."""
    shape, load, names = shape_of(options), load_average(), [OURS, *options.against]
    with ExitStack() as stack:
        sides = started(stack, [*names, PRODUCTS], "step", options)
        losses = refuse_different_steps(first_steps(sides, names, options.check), OURS)
        work = {name: sides[name].seconds_of for name in names}
        rates = {name: rate_clock(sides[PRODUCTS], number) for number, name in enumerate(product_sets(options, shape))}
        results = in_turns(work | rates, options.rounds, options.check)
        peaks = {name: sides[name].ask("memory")[0]["peak_mib"] for name in names}
    seconds = {name: results[name] for name in names}
    return {
        "benchmark": "step",
        "model": described(shape),
        "our_flags": options.flags,
        **speeds(seconds, shape["sequences"] * shape["seq"]),
        **shares(shape, seconds, results),
        **({"peak_mib": peaks} if options.device == "cuda" else {}),
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
        **gpu_name(options.device),
    }


def alibi_case(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Our step with ALiBi against our step with RoPE."""
    shape, load = alibi_shape(options, case), load_average()
    with ExitStack() as stack:
        sides = started(stack, POSITIONS, case, options)
        outcomes = first_steps(sides, POSITIONS, options.check)
        losses = {name: [round(loss, 4) for loss, _ in steps] for name, steps in outcomes.items()}
        refuse_different(losses, "rope", "loss", NEAR)
        seconds = in_turns({name: side.seconds_of for name, side in sides.items()}, options.rounds, options.check)
    tokens = shape["sequences"] * shape["seq"]
    rates = {name: [tokens / value for value in values] for name, values in seconds.items()}
    return {
        "benchmark": case,
        "model": described(shape),
        "our_flags": options.flags,
        "tokens_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "alibi_over_rope": ratios(rates["alibi"], rates["rope"]),
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
        **gpu_name(options.device),
    }


def started(stack: ExitStack, names: Iterable[str], case: str, options: argparse.Namespace) -> dict[str, Workers]:
    """The process of every side; they load at the same time, and end with `stack`."""
    sides = {}
    for name in names:
        command = [sys.executable, "-W", "ignore", __file__, "--side", name, "--case", case]
        command += [f"--{word}={getattr(options, word.replace('-', '_'))}" for word in ("device", "threads", "flags")]
        command += [f"--peak-size={options.peak_size}"]
        command += [f"--{word}={value}" for word in ("layers", "seq") if (value := getattr(options, word))]
        sides[name] = Workers(command, 1, options.threads)
        stack.callback(sides[name].end)
    return sides


def first_steps(sides: dict[str, Workers], names: Iterable[str], count: int) -> dict[str, list[tuple[float, float]]]:
    """Loss and gradient norm of the first steps of every side."""
    return {name: [tuple(sides[name].ask(f"step {i}")[0]["outcome"]) for i in range(count)] for name in names}  # type: ignore[misc]


def rate_clock(side: Workers, number: int) -> Callable[[int], float]:
    """The rate of a set of products."""

    def rate(_: int) -> float:
        time.sleep(PAUSE)
        return float(side.ask(f"rate {number}")[0]["rate"])

    return rate


def work_as(options: argparse.Namespace, case: str) -> None:
    """The process of one side: steps, or rates, on demand."""
    answers = take_stdout()
    import torch

    torch.set_num_threads(options.threads)
    if options.side == PRODUCTS:
        sets = list(product_sets(options, shape_of(options)).values())
        made = [make() for make in sets]
        serve(answers, {"rate": lambda number: {"rate": rate_of(made[number])}})
        return
    shape = shape_of(options) if case == "step" else alibi_shape(options, case) | {"positions": options.side}
    more = "" if case == "step" else ALIBI[case][1]
    flags = "" if options.side in BUILDERS else options.flags
    run, tokens = run_of(f"{SHAPE.format(**shape)} {more} {flags}"), random_tokens(VOCAB_SIZE, shape)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    with connected(run) as world:
        side = built(options.side, run, world, tokens)

        def memory(_: int) -> Answer:
            held = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
            return {"peak_mib": round(held / 2**20)}

        serve(answers, {"step": timed(side.step, wait), "memory": memory})


def built(name: str, run: Any, world: Any, tokens: Any) -> Side:
    """A side, with our initial weights."""
    parts, mine = ours(run, world, tokens, VOCAB_SIZE)
    if name not in BUILDERS:
        return mine
    weights = hugging_face_weights(run, parts, VOCAB_SIZE)
    del parts, mine
    return BUILDERS[name](run, world, tokens, weights)


def product_sets(options: argparse.Namespace, shape: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Name -> how to make the products: the model's own and two large ones."""
    size, device, tokens = options.peak_size, options.device, shape["sequences"] * shape["seq"]
    return {
        PRODUCTS: lambda: products_of(run_of(SHAPE.format(**shape)).model, VOCAB_SIZE, tokens, device),
        f"bf16 {size}^3": lambda: square(size, "bfloat16", device),
        f"fp32 {size}^3": lambda: square(size, "float32", device),
    }


def speeds(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Tokens/s of every side, and what the others take over what we take."""
    return {
        "tokens_per_s": {name: spread((tokens / value for value in values), 1) for name, values in seconds.items()},
        "ratio": {name: ratios(values, seconds[OURS]) for name, values in seconds.items() if name != OURS},
    }


def shares(shape: dict[str, Any], seconds: dict[str, list[float]], results: dict[str, list[float]]) -> dict[str, Any]:
    """Rates of the products, and the share of the model's own that each side reaches, round by round."""
    from megatron_ext.training.flops import model_flops_per_step

    run = run_of(SHAPE.format(**shape))
    giga_flops = model_flops_per_step(run.model, VOCAB_SIZE, shape["sequences"] * shape["seq"], shape["seq"]) / 1e9
    rates = {name: values for name, values in results.items() if name not in seconds}
    return {
        "model_gflop_per_step": round(giga_flops, 1),
        "gflop_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "share_of_products": {
            name: ratios([giga_flops / value for value in values], rates[PRODUCTS]) for name, values in seconds.items()
        },
    }


def described(shape: dict[str, Any]) -> str:
    """The shape in words."""
    where = "a GPU" if shape["device"] == "cuda" else f"{shape['threads']} threads"
    return (
        f"{shape['layers']} layers, h {shape['hidden']}, {shape['heads']} heads, "
        f"{shape['sequences']} x {shape['seq']} tokens, bf16, {where}"
    )


def gpu_name(device: str) -> dict[str, str]:
    """Which GPU, if any."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}


if __name__ == "__main__":
    main()
