"""Export: seconds and peak memory against the bytes written, beside a plain copy of the same bytes. One JSON line.

    python benchmarks/export.py [--layers 8] [--hidden 512] [--vocab 32000] [--dtype float32]

A checkpoint of a Llama shape with random weights is made first. Each measurement runs in a process of its own, so that
its peak is its own: the stream of weights alone (table, checkpoint reader, safetensors writer), the whole command with
its parity check, and the copy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
KIBIBYTE = 1024


def main() -> None:
    """Run the measurements, or one of them in a child process."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of an export against the bytes written.")
    parser.add_argument("--layers", type=int, default=8, help="transformer layers; default 8")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size; default 512")
    parser.add_argument("--vocab", type=int, default=32000, help="vocabulary; default 32000")
    parser.add_argument("--dtype", default="float32", help="type of the stored weights; default float32")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        warnings.filterwarnings("ignore")
        print(json.dumps(PHASES[options.phase](options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All phases, and their ratios."""
    phase(options, folder, "make")
    stream = phase(options, folder, "stream")
    whole = phase(options, folder, "whole")
    copy = phase(options, folder, "copy")
    mebi = 2**20
    return {
        "benchmark": "export",
        "shape": f"llama h{options.hidden} L{options.layers} v{options.vocab} {options.dtype}",
        "bytes_written": stream["bytes"],
        "stream_s": round(stream["s"], 3),
        "copy_s": round(copy["s"], 3),
        "stream_over_copy": round(stream["s"] / copy["s"], 2),
        "stream_mb_per_s": round(stream["bytes"] / stream["s"] / 1e6, 1),
        "peak_above_start_mib": round(stream["peak_above_start"] / mebi, 1),
        "layer_plus_embeddings_mib": round(stream["unit_bytes"] / mebi, 1),
        "peak_over_bytes_written": round(stream["peak_above_start"] / stream["bytes"], 3),
        "command_with_parity_s": round(whole["s"], 2),
        "command_peak_mib": round(whole["peak"] / mebi, 1),
    }


def phase(options: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    """What one phase prints, run in a new process."""
    shape = ["--layers", options.layers, "--hidden", options.hidden, "--vocab", options.vocab, "--dtype", options.dtype]
    line = [sys.executable, __file__, "--phase", name, "--folder", folder, *shape]
    done = subprocess.run([str(word) for word in line], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make(options: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint."""
    import torch

    from checkpoint_convert.architectures.llama import LLAMA
    from checkpoint_convert.engine import bind, sizes_of
    from megatron_ext.checkpoint.full import FullState, write_full
    from megatron_ext.config import ModelConfig, RunConfig, TrainConfig

    model = ModelConfig(
        num_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.hidden // 64,
        position_embedding_type="rope",
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        untie_embeddings_and_output_weights=True,
    )
    padded = -(-options.vocab // 128) * 128
    sizes = sizes_of(model, options.vocab, padded)
    kind = getattr(torch, options.dtype)
    tensors = (
        (row.megatron, torch.randn(row.row.megatron_shape(sizes)).mul(0.02).to(kind))
        for row in bind(LLAMA.weights, model)
    )
    run = RunConfig(model=model, train=TrainConfig(seq_length=1024))
    write_full(options.folder / "checkpoint", FullState(run, options.vocab, tensors))
    return {}


def command_line(options: argparse.Namespace, target: Path) -> list[str]:
    """Arguments of the export command."""
    return ["--load", str(options.folder / "checkpoint"), "--save", str(target)]


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Open, check and stream the weights; nothing else. Peak memory is counted above what was in use at the start."""
    import numpy as np
    import torch

    from checkpoint_convert.megatron_to_hf import parse_arguments, prepare, write_weights

    torch.set_num_threads(1)
    target = options.folder / "stream"
    target.mkdir()
    job = prepare(parse_arguments(command_line(options, target)))
    start_peak, start = peak_bytes(), time.perf_counter()
    write_weights(job, target)
    for file in target.iterdir():
        flush(file)
    seconds = time.perf_counter() - start
    sizes = job.conversion.sizes
    layer = sum(np.prod(row.row.megatron_shape(sizes)) for row in job.conversion.rows() if ".layers.0." in row.megatron)
    element = getattr(torch, job.dtype).itemsize
    return {
        "s": seconds,
        "bytes": sum(file.stat().st_size for file in target.iterdir()),
        "peak_above_start": peak_bytes() - start_peak,
        "unit_bytes": int(layer + 2 * sizes.vp * sizes.h) * element,
    }


def whole(options: argparse.Namespace) -> dict[str, Any]:
    """The command as users run it, imports not counted."""
    from checkpoint_convert.megatron_to_hf import main as export

    start = time.perf_counter()
    export(command_line(options, options.folder / "whole"))
    return {"s": time.perf_counter() - start, "peak": peak_bytes()}


def copy(options: argparse.Namespace) -> dict[str, Any]:
    """A plain copy of the exported weights, flushed to disk like the export."""
    target = options.folder / "copy"
    target.mkdir()
    start = time.perf_counter()
    for file in sorted((options.folder / "stream").iterdir()):
        with file.open("rb") as source, (target / file.name).open("wb") as out:
            shutil.copyfileobj(source, out, 2**20)
        flush(target / file.name)
    return {"s": time.perf_counter() - start}


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE


def flush(path: Path) -> None:
    """Force a file's bytes to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


PHASES = {"make": make, "stream": stream, "whole": whole, "copy": copy}


if __name__ == "__main__":
    main()
