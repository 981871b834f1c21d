"""Print a resolved configuration: every value with its unit and source, derived numbers, and all rules that fail."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ext.config.flags import SettingsParser, build_parser
from megatron_ext.config.knob import Setting, settings_of
from megatron_ext.config.load import Resolved, resolve
from megatron_ext.config.rules import failures
from megatron_ext.config.run import SECTIONS, RunConfig, run_config_to_dict
from megatron_ext.errors import run_command
from megatron_ext.model.counts import padded_vocab_size, parameter_counts
from megatron_ext.planning.activation_memory import layers_bytes, peak_bytes

_EPILOG = "Exit status: 0 when all rules hold, 1 otherwise. Needs no GPU and starts no process."


def main(argv: list[str]) -> int:
    """Print the configuration that these flags and files make; 1 when a rule does not hold."""
    own = _own_flags()
    options, rest = own.parse_known_args(argv)
    parser = build_parser("tools/check_config.py", __doc__, _EPILOG, parents=[own])
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        return 0
    resolved = resolve(rest, options.world_size, parser)
    failed = failures(resolved.run, options.purpose)
    if options.yaml:
        print(_as_yaml(resolved.run), end="")
    else:
        print(_table(resolved))
        print(_derived(resolved.run, failed))
    stream = sys.stderr if options.yaml else sys.stdout
    for name, message in failed.items():
        print(f"rule {name}: {message}", file=stream)
    if not failed:
        print("all rules hold", file=stream)
    return 1 if failed else 0


def _own_flags() -> argparse.ArgumentParser:
    parser = SettingsParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("check_config", "What to check and how to print it.")
    group.add_argument(
        "--world-size", type=_positive, help="processes of the job (default: one copy of the model: tp x pp)"
    )
    group.add_argument(
        "--purpose",
        choices=("train", "model"),
        default="train",
        help="train: all that a training run needs; model: the architecture and the layout only (default: train)",
    )
    group.add_argument("--yaml", action="store_true", help="print the values as a file that --config can read")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes")
    return int(text)


def _table(resolved: Resolved) -> str:
    lines = []
    for section, cls in SECTIONS.items():
        lines.append(f"{section}:")
        for name, setting in settings_of(cls).items():
            lines.append(_row(setting, resolved.run.get(name), resolved.sources[name]))
    return "\n".join(lines)


def _row(setting: Setting, value: Any, source: str) -> str:
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else _plain(value)
    return f"  {setting.name:42} {shown:26} {setting.knob.unit:11} {source}".rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    return "-" if value is None else str(value)


def _derived(run: RunConfig, failed: dict[str, str]) -> str:
    lines = ["derived:"]
    for name, value in _derived_numbers(run, failed).items():
        lines.append(f"  {name:42} {value:,}" if isinstance(value, int) else f"  {name:42} {value}")
    return "\n".join(lines)


def _derived_numbers(run: RunConfig, failed: dict[str, str]) -> dict[str, int | str]:
    numbers: dict[str, int | str] = {
        "world size": run.world_size,
        "data-parallel size": run.data_parallel_size,
        "layers per pipeline stage": _stages(run),
        "chunks per pipeline stage": run.virtual_pipeline_model_parallel_size or 1,
    }
    bucket = run.gradient_bucket_size
    numbers["gradient bucket (parameters)"] = "all of a model chunk" if bucket is None else bucket
    if run.train.micro_batch_size is not None and run.data_parallel_size > 0:
        numbers["global batch size (samples)"] = run.global_batch_size
        numbers["micro-batches per step and rank"] = run.num_microbatches
        if not failed:
            numbers["optimizer steps"] = run.total_train_iters
    if "architecture_is_complete" not in failed:
        numbers |= _model_numbers(run, failed)
    return numbers


def _stages(run: RunConfig) -> int | str:
    """Layers of every stage: one number if all chunks are equal, else `1+2 2+2`, stages apart, their chunks joined."""
    chunks = run.layers_per_chunk
    if len({layers for stage in chunks for layers in stage}) == 1:
        return run.layers_per_stage[0]
    return " ".join("+".join(map(str, stage)) for stage in chunks) or "-"


def _model_numbers(run: RunConfig, failed: dict[str, str]) -> dict[str, int | str]:
    model = run.model
    numbers: dict[str, int | str] = {
        "feed-forward width": model.ffn_size,
        "head size": model.head_dim,
        "key/value heads": model.query_groups,
    }
    if model.vocab_size is None:
        return {**numbers, "parameters": "unknown without --vocab-size (the tokenizer's)"}
    numbers["parameters"] = parameter_counts(model, model.vocab_size, run.max_position_embeddings).total
    if not any(name.startswith("padded_vocabulary") for name in failed):
        rows = padded_vocab_size(run, model.vocab_size)
        numbers["padded vocabulary (rows)"] = rows
        numbers["parameters with padding"] = parameter_counts(model, rows, run.max_position_embeddings).total
    if not failed and run.train.seq_length and run.train.micro_batch_size:
        one, peak = _activation_memory(run, model.vocab_size)
        numbers["activations of one micro-batch and layer"] = _mebibytes(one)
        numbers["activations of a rank at once, at most"] = _mebibytes(peak)
    return numbers


def _activation_memory(run: RunConfig, vocab_size: int) -> tuple[int, int]:
    stages = range(run.parallel.pipeline_model_parallel_size)
    return layers_bytes(run, 1), max(peak_bytes(run, vocab_size, stage) for stage in stages)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _as_yaml(run: RunConfig) -> str:
    values = run_config_to_dict(run)
    sections = {section: {k: v for k, v in values[section].items() if v is not None} for section in SECTIONS}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    run_command(main)
