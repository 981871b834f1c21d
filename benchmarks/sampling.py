#!/usr/bin/env python
"""Opening, mixing and fetching samples, side by side with megatron-core 0.16.1. Prints one JSON line per case.

`open`: from the files to the first batch of 32 of a view of 10^8 samples, in the default order, against building
GPTDataset's indices (no cache to begin with) and drawing 32. The data is one document of random tokens, which spares
GPTDataset the shuffling of documents; there is no manifest, so the whole (here small) index is checked. Samples are
compared one by one: the orders differ, so sample i of one side is looked up in the other by its place in the data.
`blend`: the greedy order of 10^7 samples of 1000 datasets; the same bytes.
`place`: the last 32 places of a mixture of that size (a restart far into a run), by megatron-core's index, built
from the beginning, and by the formula of the default order. The orders differ; both are checked to keep the weights.
`fetch`: batches of 32 samples at random, page-cached, of short documents: GPTDataset.__getitem__ and torch's default
collate against one gather per batch, both ending with tokens, labels, loss mask and positions; the same bytes.
Each side runs in one process of its own, without children. Interpreter start and imports are not timed. `peak_mib` is
the largest resident memory of that process, pages of the mapped files included; `own_mib` is what it took during the
timed work beyond its imports, without pages of files (those of the page cache, which any process may map).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.sides.measure import measured, memory_mib, run_timed

CASES = ("open", "blend", "place", "fetch")
SIDES = ("core", "ours")
OPEN_LENGTH, FETCH_LENGTH, BATCH, VOCAB = 8, 1024, 32, 250
FETCH_BATCHES = 64


def main() -> None:
    """Make the data, run both sides of each case, compare, print."""
    options = parse_arguments()
    if options.side:
        print(json.dumps(side_of(options)))
        return
    for case in options.case or CASES:
        with tempfile.TemporaryDirectory(prefix="bench_sampling_", dir=options.folder) as folder:
            compare_sides(case, options, Path(folder))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=None, help="cases to run (default: all)")
    parser.add_argument("--samples", type=int, default=10**8, help="samples of the view that is opened")
    parser.add_argument("--blend-samples", type=int, default=10**7, help="samples of the mixture")
    parser.add_argument("--datasets", type=int, default=1000, help="datasets of the mixture")
    parser.add_argument("--documents", type=int, default=10**6, help="short documents to fetch samples from")
    parser.add_argument(
        "--folder", default=None, help="where temporary files go; the view opened needs 8 bytes a sample"
    )
    parser.add_argument("--side", choices=SIDES, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_sides(case: str, options: argparse.Namespace, folder: Path) -> None:
    """Run one case and print its line.

    Raises:
        SystemExit: the outputs differ.
    """
    make_data(case, options, folder)
    runs: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--case", case, "--folder", str(folder)]
        command += ["--samples", str(options.samples), "--blend-samples", str(options.blend_samples)]
        command += ["--datasets", str(options.datasets), "--documents", str(options.documents)]
        runs[side] = run_timed(command)
    outputs = {side: run.pop("output") for side, run in runs.items()}
    if outputs["core"] != outputs["ours"]:
        raise SystemExit(f"{case}: the outputs differ")
    core, ours = runs["core"], runs["ours"]
    line = {
        "benchmark": f"sampling {case}",
        "size": {"open": options.samples, "fetch": FETCH_BATCHES * BATCH}.get(case, options.blend_samples),
        **runs,
        "times_faster": round(core["seconds"] / ours["seconds"], 1),
        "times_less_peak_memory": round(core["peak_mib"] / ours["peak_mib"], 1),
        "times_less_own_memory": round(core["own_mib"] / max(ours["own_mib"], 0.1), 1),
    }
    print(json.dumps(line), flush=True)


def make_data(case: str, options: argparse.Namespace, folder: Path) -> None:
    """The dataset of a case, without manifest."""
    from megatron_ext.data.store.indexed_writer import write_indexed

    random = np.random.default_rng(0)
    if case == "open":
        count = options.samples * OPEN_LENGTH + 1
        write_indexed(folder / "data", [random.integers(0, VOCAB - 1, count, np.uint8)], np.uint8)
    elif case == "fetch":
        lengths = random.integers(1, 48, options.documents)
        tokens = random.integers(0, VOCAB - 1, lengths.sum()).astype(np.uint16)
        write_indexed(folder / "data", np.split(tokens, np.cumsum(lengths)[:-1]), np.uint16)


def side_of(options: argparse.Namespace) -> dict[str, Any]:
    """Time one side of one case; `output` is what the sides are compared by."""
    case, folder = options.case[0], Path(options.folder)
    prepare = {"open": prepare_open, "blend": prepare_blend, "place": prepare_place, "fetch": prepare_fetch}[case]
    work = prepare(options, folder)
    before = memory_mib("RssAnon")
    result: list[Any] = []
    times = measured(lambda: result.append(work()))
    memory = {
        "peak_mib": round(memory_mib("VmHWM"), 1),
        "own_mib": round(memory_mib("VmHWM") - memory_mib("RssFile") - before, 2),
    }
    output = result[0]() if callable(result[0]) else result[0]
    return {**{name: round(value, 6) for name, value in times.items()}, **memory, "output": output}


def prepare_open(options: argparse.Namespace, folder: Path) -> Callable[[], Callable[[], str]]:
    """Open the view and draw its first batch; afterwards look the samples up by their place in the data."""
    prefix, wanted = str(folder / "data"), options.samples
    tokens = np.memmap(f"{prefix}.bin", np.uint8, mode="r")
    if options.side == "core":
        from megatron.core.datasets import blended_megatron_dataset_builder  # noqa: F401

        from benchmarks.sides.core_samples import gpt_dataset

        def core() -> Callable[[], str]:
            dataset: Any = gpt_dataset(prefix, wanted, OPEN_LENGTH, folder / "cache", VOCAB)
            rows = [dataset[i]["tokens"].numpy() for i in range(BATCH)]
            return lambda: _checked(tokens, dataset.shuffle_index[:BATCH], rows, len(dataset))

        return core
    from megatron_ext.data.order import PermutedOrder
    from megatron_ext.data.split import Span
    from megatron_ext.data.store.indexed import IndexedDataset
    from megatron_ext.data.views import WindowView

    def ours() -> Callable[[], str]:
        view = WindowView(IndexedDataset(prefix), Span(0, 1), OPEN_LENGTH, VOCAB)
        view.ordered_by(PermutedOrder(len(view), "key"))
        ids = view.sample_ids(0, BATCH)
        rows = view.read(ids)[0]
        return lambda: _checked(tokens, ids, list(rows[:, :-1]), len(view))

    return ours


def prepare_blend(options: argparse.Namespace, folder: Path) -> Callable[[], Callable[[], str]]:
    """The whole greedy order; its hash."""
    weights, size = np.random.default_rng(0).dirichlet(np.ones(options.datasets)), options.blend_samples
    if options.side == "core":
        from megatron.core.datasets import helpers_cpp

        def core() -> Callable[[], str]:
            dataset, sample = np.zeros(size, np.int16), np.zeros(size, np.int64)
            helpers_cpp.build_blending_indices(dataset, sample, weights, len(weights), size, False)
            return lambda: _hash(dataset, sample)

        return core
    from megatron_ext import native

    def ours() -> Callable[[], str]:
        dataset, sample, _ = native.blend(weights, np.zeros(len(weights), np.int64), 0, size)
        return lambda: _hash(dataset, sample)

    return ours


def prepare_place(options: argparse.Namespace, folder: Path) -> Callable[[], Callable[[], str]]:
    """The last places of a mixture; what is drawn up to them is compared with the weights."""
    weights, size = np.random.default_rng(0).dirichlet(np.ones(options.datasets)), options.blend_samples
    if options.side == "core":
        from megatron.core.datasets import helpers_cpp

        def core() -> Callable[[], str]:
            dataset, sample = np.zeros(size, np.int16), np.zeros(size, np.int64)
            helpers_cpp.build_blending_indices(dataset, sample, weights, len(weights), size, False)
            last = dataset[-BATCH:], sample[-BATCH:]
            return lambda: _kept(weights, np.bincount(dataset, minlength=len(weights)), *last)

        return core
    from megatron_ext.data.spread_mixture import WeightedMixture

    def ours() -> Callable[[], str]:
        mixture = WeightedMixture(weights)
        last = mixture.places(size - BATCH, BATCH)
        return lambda: _kept(weights, mixture.drawn(size), *last)

    return ours


def prepare_fetch(options: argparse.Namespace, folder: Path) -> Callable[[], Callable[[], str]]:
    """Batches of samples at random; the hash of all of them."""
    prefix = str(folder / "data")
    num_samples = (int(np.memmap(f"{prefix}.bin", np.uint16, mode="r").astype(np.int64).size) - 1) // FETCH_LENGTH
    places = np.random.default_rng(1).integers(0, num_samples, (FETCH_BATCHES, BATCH))
    from megatron_ext.data.loader import LoaderConfig, to_batch

    if options.side == "core":
        from torch.utils.data import default_collate

        from benchmarks.sides.core_samples import gpt_dataset

        dataset: Any = gpt_dataset(prefix, num_samples, FETCH_LENGTH, folder / "cache", VOCAB)
        read = lambda ids: default_collate([dataset[i] for i in ids.tolist()])  # noqa: E731
    else:
        import torch

        from megatron_ext.data.megatron_order import MegatronOrder, MegatronView
        from megatron_ext.data.split import Span
        from megatron_ext.data.store.indexed import IndexedDataset

        store = IndexedDataset(prefix)
        view = MegatronView(store, Span(0, len(store)), MegatronOrder(1, FETCH_LENGTH, num_samples), VOCAB)
        config = LoaderConfig(BATCH)
        read = lambda ids: to_batch(torch.from_numpy(view.read(ids)[0]), config)  # noqa: E731
    for ids in places:  # everything is in the page cache, on both sides
        read(ids)

    def work() -> Callable[[], str]:
        batches = [read(ids) for ids in places]
        return lambda: _hash(*(batch[name].numpy() for batch in batches for name in sorted(batch)))

    return work


def _checked(tokens: np.ndarray, windows: np.ndarray, rows: list[np.ndarray], size: int) -> str:
    """The number of samples, once each row is the window of the data that it should be."""
    for window, row in zip(windows.tolist(), rows, strict=True):
        if row.tolist() != tokens[window * OPEN_LENGTH : (window + 1) * OPEN_LENGTH].tolist():
            raise SystemExit("a sample is not the window of the data that it should be")
    return f"{size} samples"


def _kept(weights: np.ndarray, drawn: np.ndarray, dataset: np.ndarray, sample: np.ndarray) -> str:
    """The number of places, once the weights are kept up to them and the last ones are the last of their datasets."""
    size = int(drawn.sum())
    if np.abs(drawn - weights * size).max() > np.log2(size) + 1:
        raise SystemExit("a dataset is further from its weight than the logarithm of the places")
    for name in np.unique(dataset).tolist():
        if sample[dataset == name].tolist() != list(
            range(drawn[name] - np.count_nonzero(dataset == name), drawn[name])
        ):
            raise SystemExit("the last samples of a dataset are not its last")
    return f"{size} places"


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
