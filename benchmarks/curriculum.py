#!/usr/bin/env python
"""An order file of 10^8 samples by difficulty against numpy's stable argsort of the same float32 difficulties.

Each side is a process of its own that reads the difficulties from a file and writes all sample ids to a file; it runs
once to be timed and once to have its memory looked at. Prints one JSON line: seconds and peak memory of both;
`time_ratio` and `memory_ratio` are numpy's over ours. The ids are compared first, one by one.

With --alone numpy is left out, for sizes that it has no memory for and methods that it does not know: one run, its
memory looked at every half second. The order file is then opened, which checks that every sample stands in it once,
and of a sorted one 64 pieces are compared with the difficulties.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from megatron_ext.data.order_file import FileOrder, OrderTarget

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.measure import measured, peak_mib, run_timed, run_timed_with_peak

_BLOCK = 1 << 20
_CHECKED_PIECES = 64
_METHODS = ("sorted", "paced", "interleaved", "warmup")


def main() -> None:
    """Run both sides, compare, print; with --side run one of them."""
    options = _parse_arguments()
    if options.side is not None:
        work = _ours if options.side == "ours" else _numpy
        print(json.dumps(measured(lambda: work(options))))
        return
    with tempfile.TemporaryDirectory(prefix="bench_curriculum_", dir=options.folder) as name:
        folder = Path(name)
        _write_difficulties(folder, options.samples)
        command = [sys.executable, __file__, "--folder", name, "--samples", str(options.samples)]
        command += ["--method", options.method, "--side"]
        figures = _alone(folder, options, command) if options.alone else _both(folder, options, command)
    print(json.dumps({"benchmark": f"curriculum order, {options.method}", "samples": options.samples, **figures}))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**8, help="samples to order")
    parser.add_argument("--folder", type=Path, default=None, help="where files go; 32 bytes per sample")
    parser.add_argument("--method", choices=_METHODS, default="sorted", help="others than sorted need --alone")
    parser.add_argument("--alone", action="store_true", help="leave numpy out")
    parser.add_argument("--side", choices=("ours", "numpy"), default=None, help="run one side in --folder")
    options = parser.parse_args()
    if options.method != "sorted" and not options.alone and options.side is None:
        parser.error(f"numpy has nothing to compare --method {options.method} with: give --alone")
    return options


def _both(folder: Path, options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    sides = {side: run_timed([*command, side]) for side in ("numpy", "ours")}
    _refuse_different(folder, options.samples)
    for side, figures in sides.items():
        figures["peak_mib"] = peak_mib([*command, side])
    ours, other = sides["ours"], sides["numpy"]
    ratios = {"time": other["seconds"] / ours["seconds"], "memory": other["peak_mib"] / ours["peak_mib"]}
    return {**{f"{what}_ratio": round(ratio, 2) for what, ratio in ratios.items()}, **sides}


def _alone(folder: Path, options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    from megatron_ext.data.order_file import FileOrder

    figures = run_timed_with_peak([*command, "ours"], 0.5)
    start = time.perf_counter()
    order = FileOrder(folder / "ours", _target(options.samples))
    figures["opened_in_seconds"] = time.perf_counter() - start
    if options.method == "sorted":
        _refuse_unsorted(order, np.memmap(folder / "difficulties", np.float32, "r"))
    return {"ours": figures}


def _write_difficulties(folder: Path, samples: int) -> None:
    random = np.random.default_rng(0)
    with (folder / "difficulties").open("wb") as stream:
        for first in range(0, samples, _BLOCK):
            random.standard_normal(min(_BLOCK, samples - first), np.float32).tofile(stream)


def _target(samples: int) -> OrderTarget:
    from megatron_ext.data.order_file import OrderTarget

    return OrderTarget("benchmark", 0, samples, 1, samples)


def _ours(options: argparse.Namespace) -> None:
    from megatron_ext.data.curriculum.build import ordered_samples
    from megatron_ext.data.curriculum.sample_space import SampleSpace
    from megatron_ext.data.curriculum.settings import CurriculumSettings
    from megatron_ext.data.curriculum.sort_keys import KeyFile, sortable_keys
    from megatron_ext.data.order_file import OrderFileWriter

    folder, samples = options.folder, options.samples
    order = CurriculumSettings(options.method).order(SampleSpace(("benchmark",), (samples,), 1))
    with KeyFile(folder) as keys, (folder / "difficulties").open("rb") as stream:
        while content := stream.read(4 * _BLOCK):
            keys.append(sortable_keys(np.frombuffer(content, np.float32)))
        with OrderFileWriter(folder / "ours", samples, _target(samples), {}, "permutation") as writer:
            for ids in ordered_samples(keys, order, folder):
                writer.append(ids)
            writer.publish()


def _numpy(options: argparse.Namespace) -> None:
    difficulties = np.fromfile(options.folder / "difficulties", np.float32, options.samples)
    np.argsort(difficulties, kind="stable").tofile(options.folder / "numpy")


def _refuse_different(folder: Path, samples: int) -> None:
    theirs = np.memmap(folder / "numpy", np.int64, "r")
    offset = (folder / "ours").stat().st_size - 8 * samples
    ours = np.memmap(folder / "ours", np.int64, "r", offset=offset)
    for first in range(0, samples, _BLOCK):
        if not np.array_equal(ours[first : first + _BLOCK], theirs[first : first + _BLOCK]):
            raise SystemExit(f"the orders differ between places {first} and {first + _BLOCK}")


def _refuse_unsorted(order: FileOrder, difficulties: np.ndarray) -> None:
    """Pieces of the order rise, equal difficulties by number, and so do the pieces one after the other."""
    before = -np.inf
    for first in np.linspace(0, max(0, len(order) - _BLOCK), _CHECKED_PIECES).astype(np.int64).tolist():
        ids = order.sample_ids(first, min(_BLOCK, len(order)))
        values = difficulties[ids]
        rises = (values[1:] > values[:-1]) | ((values[1:] == values[:-1]) & (ids[1:] > ids[:-1]))
        if not rises.all() or values[0] < before:
            raise SystemExit(f"the order is not sorted between places {first} and {first + len(ids)}")
        before = values[0]


if __name__ == "__main__":
    main()
