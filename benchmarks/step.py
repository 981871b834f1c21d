#!/usr/bin/env python
"""One training step on CPU, side by side. Prints one JSON line per case.

`step`: this project, transformers (eager, compiled), megatron-core's local spec. 58 M parameters in Llama's shape,
2 x 1024 tokens, bf16 compute, one process. All sides start from the same weights and see the same tokens; their
losses and gradient norms over the first steps are compared before any time counts. Rounds alternate between the sides.
`ratio` is theirs over ours in seconds, round by round: above 1 we are faster. In the same rounds stand the bf16 matrix
products of the model's own shapes (forward, both gradients; qkv, proj, fc1, fc2, output layer; as often as a step has
them; operands warm). `share_of_products` is a side's model FLOP/s over theirs, where model FLOPs are those of
`megatron_ext/training/flops.py`: projections, causal attention, logits; no norms, no optimizer. One large square
product in bf16 and in fp32 stands beside it as the peak of the library.
`alibi`: our step with ALiBi against our step with RoPE, 40 heads. The heads keep the 64 channels that they have in the
58 M model (--kv-channels), hidden size 512, 4 layers: about as many operations as `step`, a fifth of them attention,
where the bias makes the difference. Both start from the same weights; positions change losses, so the first ones only
have to be near each other.
`alibi-wide`: the same with heads that add up to the hidden size, 2560, as large models have it: one layer, in which
attention is a fiftieth. More operations than `step`; not run unless asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
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
    timed,
)
from benchmarks.sides.step_sides import (
    BUILDERS,
    LLAMA,
    SEQUENCES,
    SHAPE,
    Side,
    connected,
    hugging_face_weights,
    ours,
    random_tokens,
    run_of,
)

VOCAB_SIZE = 32000
CASES = ("step", "alibi", "alibi-wide")
ALIBI = {
    "alibi": ({"heads": 40, "layers": 4}, "--kv-channels 64"),
    "alibi-wide": ({"heads": 40, "layers": 1, "hidden": 2560, "ffn": 6912}, ""),
}
NEAR = 0.02
"""Of losses with different positions, relatively: at the beginning all are near log(vocabulary)."""


def main() -> None:
    """Run the cases one after the other."""
    options = parse_arguments()
    import torch

    torch.set_num_threads(options.threads)
    for case in options.case:
        line = step_case(options) if case == "step" else alibi_case(options, case)
        print(json.dumps(line), flush=True)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=["step", "alibi"])
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--check", type=int, default=2, help="first steps, whose losses are compared")
    parser.add_argument("--threads", type=int, default=LLAMA["threads"])
    parser.add_argument("--layers", type=int, default=None, help="default: what the case says")
    parser.add_argument("--seq", type=int, default=LLAMA["seq"])
    parser.add_argument("--against", nargs="*", default=sorted(BUILDERS), choices=sorted(BUILDERS))
    parser.add_argument("--flags", default="", help='more flags of the run, for our side alone, e.g. ="--a 1 --b"')
    parser.add_argument("--peak-size", type=int, default=4096, help="rows of the large square product")
    return parser.parse_args()


def flags_of(options: argparse.Namespace, **shape: Any) -> str:
    """The flags of a case's run."""
    layers = {"layers": options.layers} if options.layers else {}
    return SHAPE.format(**{**LLAMA, "seq": options.seq, "threads": options.threads, **shape, **layers})


def step_case(options: argparse.Namespace) -> dict[str, Any]:
    """Build the sides, compare their first steps, time them and the products in turns."""
    flags, load = flags_of(options), load_average()
    base, run = run_of(flags), run_of(f"{flags} {options.flags}")
    tokens = random_tokens(VOCAB_SIZE, options.seq)
    with connected(run) as world:
        parts, mine = ours(run, world, tokens, VOCAB_SIZE)
        sides: dict[str, Side] = {"ours": mine}
        weights = hugging_face_weights(run, parts, VOCAB_SIZE)
        for name in options.against:
            sides[name] = BUILDERS[name](base, world, tokens, weights)
        outcomes = {name: [side.step(index) for index in range(options.check)] for name, side in sides.items()}
        losses = refuse_different_steps(outcomes, "ours")
        work = {name: timed(side.step) for name, side in sides.items()}
        results = in_turns(work | product_rates(base, options), options.rounds, options.check)
    seconds = {name: results[name] for name in sides}
    return {
        "benchmark": "step",
        "model": f"{described(base)}, 2 x {options.seq} tokens, bf16, {options.threads} threads",
        "our_flags": options.flags,
        **speeds(seconds, SEQUENCES * options.seq),
        **shares(base, seconds, results),
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
    }


def product_rates(run: Any, options: argparse.Namespace) -> dict[str, Callable[[int], float]]:
    """Rates in GFLOP/s, as sides of a round: the model's products and one large one."""
    size = options.peak_size
    sets = {
        "products": products_of(run.model, VOCAB_SIZE, SEQUENCES * options.seq),
        f"bf16 {size}^3": square(size, "bfloat16"),
        f"fp32 {size}^3": square(size, "float32"),
    }
    # the first results are made with the operands, so each has run once
    return {name: lambda _, products=products: rate_of(products) for name, products in sets.items()}  # type: ignore[misc]


def speeds(seconds: dict[str, list[float]], tokens: int) -> dict[str, Any]:
    """Tokens/s of every side, and what the others take over what we take."""
    return {
        "tokens_per_s": {name: spread((tokens / value for value in values), 1) for name, values in seconds.items()},
        "ratio": {name: ratios(values, seconds["ours"]) for name, values in seconds.items() if name != "ours"},
    }


def shares(run: Any, seconds: dict[str, list[float]], results: dict[str, list[float]]) -> dict[str, Any]:
    """Rates of the products, and the share of the model's own that each side reaches, round by round."""
    from megatron_ext.training.flops import model_flops_per_step

    seq = run.train.seq_length
    giga_flops = model_flops_per_step(run.model, VOCAB_SIZE, SEQUENCES * seq, seq) / 1e9
    rates = {name: values for name, values in results.items() if name not in seconds}
    return {
        "model_gflop_per_step": round(giga_flops, 1),
        "gflop_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "share_of_products": {
            name: ratios([giga_flops / value for value in values], rates["products"])
            for name, values in seconds.items()
        },
    }


def alibi_case(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Our step with ALiBi against our step with RoPE."""
    (shape, more), load = ALIBI[case], load_average()
    runs = {
        name: run_of(f"{flags_of(options, positions=name, **shape)} {more} {options.flags}")
        for name in ("alibi", "rope")
    }
    tokens = random_tokens(VOCAB_SIZE, options.seq)
    with connected(runs["rope"]) as world:
        sides = {name: ours(run, world, tokens, VOCAB_SIZE)[1] for name, run in runs.items()}
        outcomes = {name: [side.step(index) for index in range(options.check)] for name, side in sides.items()}
        losses = {name: [round(outcome.loss, 4) for outcome in steps] for name, steps in outcomes.items()}
        refuse_different(losses, "rope", "loss", NEAR)
        seconds = in_turns({name: timed(side.step) for name, side in sides.items()}, options.rounds, options.check)
    rates = {name: [SEQUENCES * options.seq / value for value in values] for name, values in seconds.items()}
    return {
        "benchmark": case,
        "model": f"{described(runs['rope'])}, 2 x {options.seq} tokens, bf16, {options.threads} threads",
        "our_flags": options.flags,
        "tokens_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "alibi_over_rope": ratios(rates["alibi"], rates["rope"]),
        "first_losses": losses,
        "rounds": options.rounds,
        **machine(load),
    }


def described(run: Any) -> str:
    """The shape in words."""
    model = run.model
    return f"{model.num_layers} layers, h {model.hidden_size}, {model.heads} heads of {model.head_dim}"


if __name__ == "__main__":
    main()
