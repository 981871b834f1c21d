#!/usr/bin/env python
"""One training step on CPU, side by side: this project, transformers (eager, compiled), megatron-core's local spec.

58 M parameters in Llama's shape, 2 x 1024 tokens, bf16 compute, one process. All sides start from the same weights
and see the same tokens; their losses over the first steps are compared before any time counts. Rounds alternate
between the sides. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

FLAGS = (
    "--num-layers {layers} --hidden-size 512 --ffn-hidden-size 1408 --num-attention-heads 8 --swiglu "
    "--normalization RMSNorm --norm-epsilon 1e-5 --position-embedding-type rope "
    "--untie-embeddings-and-output-weights --disable-bias-linear --hidden-dropout 0 --attention-dropout 0 "
    "--seq-length {seq} --micro-batch-size 2 --lr 1e-4 --lr-decay-style constant --train-iters 100 "
    "--adam-beta2 0.95 --weight-decay 0.1 --clip-grad 1.0 --bf16 --device cpu --num-threads {threads}"
)
VOCAB_SIZE = 32000
Side = Callable[[int], float]


def main() -> None:
    """Build the sides, compare their losses, time them in turns."""
    options = parse_arguments()
    warnings.filterwarnings("ignore")
    import torch

    from megatron_ext.config import load_run_config
    from megatron_ext.parallel.world import start_world
    from megatron_ext.platform.cpu import CpuPlatform

    torch.set_num_threads(options.threads)
    flags = FLAGS.format(layers=options.layers, seq=options.seq, threads=options.threads)
    run = load_run_config(flags.split(), 1, "model").run
    tokens = torch.randint(0, VOCAB_SIZE, (64, 2, options.seq + 1), generator=torch.Generator().manual_seed(0))
    with start_world(run, CpuPlatform()) as world:
        sides: dict[str, Side] = {}
        parts, sides["ours"] = ours(run, world, tokens)
        weights = hugging_face_weights(run, parts)
        for name in options.against:
            sides[name] = BUILDERS[name](run, world, tokens, weights)
        losses = {name: [step(index) for index in range(options.check)] for name, step in sides.items()}
        refuse_different(losses)
        seconds = measure(sides, options.rounds, options.check)
    report(options, losses, seconds)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; imports no torch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--check", type=int, default=3, help="first steps, whose losses are compared")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument(
        "--against", nargs="*", default=["transformers-eager", "megatron-local"], choices=sorted(BUILDERS)
    )
    return parser.parse_args()


def ours(run: Any, world: Any, tokens: Any) -> tuple[Any, Side]:
    """This project's step, as `pretrain_gpt.py` runs it."""
    from megatron_ext.model.gpt import build_model

    return _core_side(run, world, tokens, build_model(run, VOCAB_SIZE, "cpu"))


def megatron_local(run: Any, world: Any, tokens: Any, weights: dict[str, Any]) -> Side:
    """megatron-core's GPTModel with its own local layer spec, on the same adapter and optimizer."""
    del weights
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from megatron_ext.config.to_core import transformer_config
    from megatron_ext.model.init import initialize_parameters

    class LocalModel(GPTModel):
        """The stock model; its loss is the stock vocabulary-parallel cross entropy."""

    model = LocalModel(
        config=transformer_config(run, "cpu"),
        transformer_layer_spec=get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=VOCAB_SIZE,
        max_sequence_length=run.train.seq_length,
        share_embeddings_and_output_weights=False,
        position_embedding_type="rope",
    )
    initialize_parameters(model, run)
    return _core_side(run, world, tokens, [model])[1]


def transformers_side(run: Any, world: Any, tokens: Any, weights: dict[str, Any], compiled: bool = False) -> Side:
    """Transformers' LlamaForCausalLM with bf16 weights and torch's fused AdamW."""
    del world
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = run.model
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.query_groups,
        rms_norm_eps=model.layernorm_epsilon,
        max_position_embeddings=run.train.seq_length,
        use_cache=False,
    )
    llama = LlamaForCausalLM(config).to(torch.bfloat16)
    llama.load_state_dict({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()})
    optimizer = torch.optim.AdamW(llama.parameters(), lr=run.optim.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    forward = torch.compile(llama) if compiled else llama

    def step(index: int) -> float:
        batch = tokens[index % len(tokens)]
        labels = torch.cat([batch[:, :1], batch[:, 1:]], dim=1)
        # transformers shifts the labels itself: position i is scored on token i + 1
        out = forward(input_ids=batch[:, :-1], labels=labels[:, :-1], shift_labels=batch[:, 1:].contiguous())
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(out.loss.detach())

    return step


def transformers_compiled(run: Any, world: Any, tokens: Any, weights: dict[str, Any]) -> Side:
    """The same under torch.compile."""
    return transformers_side(run, world, tokens, weights, compiled=True)


BUILDERS = {
    "transformers-eager": transformers_side,
    "transformers-compiled": transformers_compiled,
    "megatron-local": megatron_local,
}


def _core_side(run: Any, world: Any, tokens: Any, models: list[Any]) -> tuple[Any, Side]:
    import torch

    from megatron_ext.training.components import assemble
    from megatron_ext.training.metrics import TrainState
    from megatron_ext.training.step import train_step

    parts = assemble(run.with_values(global_batch_size=2), world, models)
    shape = (2, run.train.seq_length)
    positions, mask = torch.arange(shape[1]).expand(shape), torch.ones(shape)

    def step(index: int) -> float:
        batch = tokens[index % len(tokens)]
        micro = {"tokens": batch[:, :-1].contiguous(), "labels": batch[:, 1:].contiguous()}
        reader = iter([{**micro, "position_ids": positions, "loss_mask": mask}])
        return train_step(parts, TrainState(iteration=index), [reader]).lm_loss

    return parts, step


def hugging_face_weights(run: Any, parts: Any) -> dict[str, Any]:
    """Our initial weights under transformers' names, through the converter's own table."""
    from checkpoint_convert.architectures.llama import LLAMA
    from checkpoint_convert.engine import Conversion, sizes_of

    state = {name: tensor.detach() for name, tensor in parts.models[0].state_dict().items() if tensor is not None}
    source = InMemory({name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")})
    conversion = Conversion(LLAMA, run.model, sizes_of(run.model, VOCAB_SIZE, VOCAB_SIZE))
    return {name: tensor.float().clone() for name, tensor in conversion.export(source)}


class InMemory:
    """Weights in memory, in the form that the converter reads."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one weight."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> Any:
        """Type of one weight."""
        return self._tensors[name].dtype

    def read(self, name: str) -> Any:
        """One weight."""
        return self._tensors[name]


def refuse_different(losses: dict[str, list[float]]) -> None:
    """End the benchmark when the sides do not compute the same thing."""
    reference = losses["ours"]
    for name, values in losses.items():
        for ours_value, value in zip(reference, values, strict=True):
            if abs(ours_value - value) > 0.01 * abs(ours_value):
                raise SystemExit(f"{name} computes another loss: {values} against {reference}")


def measure(sides: dict[str, Side], rounds: int, first: int) -> dict[str, list[float]]:
    """Seconds of each side's step, the sides in turns, every other round in reverse."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            started = time.perf_counter()
            sides[name](first + number)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def report(options: argparse.Namespace, losses: dict[str, list[float]], seconds: dict[str, list[float]]) -> None:
    """Print the JSON line: median tokens/s of each side, and our ratio to each with its spread over the rounds."""
    import torch

    tokens = 2 * options.seq
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: sorted(theirs / mine for mine, theirs in zip(seconds["ours"], values, strict=True))
        for name, values in seconds.items()
        if name != "ours"
    }
    line = {
        "benchmark": "step",
        "model": f"{options.layers} layers, h 512, 2 x {options.seq} tokens, bf16, {options.threads} threads",
        "tokens_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "ratio_min_max": {name: [round(values[0], 3), round(values[-1], 3)] for name, values in ratios.items()},
        "first_losses": {name: [round(value, 4) for value in values] for name, values in losses.items()},
        "rounds": options.rounds,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
