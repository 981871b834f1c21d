#!/usr/bin/env python
"""An order file of 10^8 samples by difficulty against numpy's stable argsort of the same float32 difficulties.

Each side is a process of its own that reads the difficulties from a file and writes all sample ids to a file; it runs
once to be timed and once to have its memory looked at. Prints one JSON line: seconds and peak memory of both;
`time_ratio` and `memory_ratio` are numpy's over ours. The ids are compared first, one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.measure import measured, peak_mib, run_timed

_BLOCK = 1 << 20


def main() -> None:
    """Run both sides, compare, print; with --side run one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**8, help="samples to order")
    parser.add_argument("--folder", type=Path, default=None, help="where files go; 32 bytes per sample")
    parser.add_argument("--side", choices=("ours", "numpy"), default=None, help="run one side in --folder")
    options = parser.parse_args()
    if options.side is not None:
        work = _ours if options.side == "ours" else _numpy
        print(json.dumps(measured(lambda: work(options.folder, options.samples))))
        return
    with tempfile.TemporaryDirectory(prefix="bench_curriculum_", dir=options.folder) as name:
        folder = Path(name)
        _write_difficulties(folder, options.samples)
        command = [sys.executable, __file__, "--folder", name, "--samples", str(options.samples), "--side"]
        sides = {side: run_timed([*command, side]) for side in ("numpy", "ours")}
        _refuse_different(folder, options.samples)
        for side, figures in sides.items():
            figures["peak_mib"] = peak_mib([*command, side])
    ours, other = sides["ours"], sides["numpy"]
    ratios = {"time": other["seconds"] / ours["seconds"], "memory": other["peak_mib"] / ours["peak_mib"]}
    rounded = {f"{what}_ratio": round(ratio, 2) for what, ratio in ratios.items()}
    print(json.dumps({"benchmark": "curriculum order", "samples": options.samples, **rounded, **sides}))


def _write_difficulties(folder: Path, samples: int) -> None:
    random = np.random.default_rng(0)
    with (folder / "difficulties").open("wb") as stream:
        for first in range(0, samples, _BLOCK):
            random.standard_normal(min(_BLOCK, samples - first), np.float32).tofile(stream)


def _ours(folder: Path, samples: int) -> None:
    from megatron_ext.data.curriculum.build import ordered_samples
    from megatron_ext.data.curriculum.orders import SortedOrder
    from megatron_ext.data.curriculum.sort_keys import KeyFile, sortable_keys
    from megatron_ext.data.order_file import OrderFileWriter, OrderTarget

    target = OrderTarget("benchmark", 0, samples, 1, samples)
    with KeyFile(folder) as keys, (folder / "difficulties").open("rb") as stream:
        while content := stream.read(4 * _BLOCK):
            keys.append(sortable_keys(np.frombuffer(content, np.float32)))
        with OrderFileWriter(folder / "ours", samples, target, {}, "permutation") as writer:
            for ids in ordered_samples(keys, SortedOrder(samples), folder):
                writer.append(ids)
            writer.publish()


def _numpy(folder: Path, samples: int) -> None:
    difficulties = np.fromfile(folder / "difficulties", np.float32, samples)
    np.argsort(difficulties, kind="stable").tofile(folder / "numpy")


def _refuse_different(folder: Path, samples: int) -> None:
    theirs = np.memmap(folder / "numpy", np.int64, "r")
    offset = (folder / "ours").stat().st_size - 8 * samples
    ours = np.memmap(folder / "ours", np.int64, "r", offset=offset)
    for first in range(0, samples, _BLOCK):
        if not np.array_equal(ours[first : first + _BLOCK], theirs[first : first + _BLOCK]):
            raise SystemExit(f"the orders differ between places {first} and {first + _BLOCK}")


if __name__ == "__main__":
    main()
