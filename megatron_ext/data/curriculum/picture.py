"""An order as a picture: difficulty against position, and which part of the data and which dataset stands where."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.build import Trace
from megatron_ext.errors import DataError

BINS = 200
_TENTHS = 10
_SOURCES = 10


def bands(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Difficulty along an order, in at most 200 equal stretches.

    Returns:
        Edges of the stretches float64 `[b + 1]`; mean, 10th, 50th and 90th percentile in each, float64 `[b, 4]`.
    """
    edges, bounds = _stretches(trace)
    parts = [trace.difficulties[begin:end] for begin, end in bounds]
    rows = [[part.mean(dtype=np.float64), *np.percentile(part, [10, 50, 90])] for part in parts]
    return edges, np.array(rows, np.float64)


def shares(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What is drawn where: the shares of the tenths of the data by difficulty.

    Returns:
        Edges as of `bands`; the shares in each stretch, float64 `[b, t]`; the difficulties that divide the tenths,
        float64 `[t + 1]`, which are fewer than ten where many samples are equally difficult.
    """
    edges, bounds = _stretches(trace)
    parts = [trace.difficulties[begin:end] for begin, end in bounds]
    limits = np.unique(np.percentile(trace.difficulties, np.linspace(0, 100, _TENTHS + 1), method="higher"))
    if len(limits) == 1:
        limits = np.repeat(limits, 2)
    counts = [
        np.bincount(
            np.clip(np.searchsorted(limits, part, side="right") - 1, 0, len(limits) - 2), minlength=len(limits) - 1
        )
        for part in parts
    ]
    return edges, np.array([count / count.sum() for count in counts]), limits.astype(np.float64)


def source_shares(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Which dataset stands where: the ten with the most samples, or nine and all others together.

    Returns:
        Edges as of `bands`; the shares in each stretch, float64 `[b, k]`; what the k are called, the one with the
        most samples first. Datasets of one and the same name have their number before it.
    """
    edges, bounds = _stretches(trace)
    names, num_sources = trace.source_names, len(trace.source_names)
    totals = np.bincount(trace.sources, minlength=num_sources)
    by_size = np.argsort(-totals, kind="stable")
    kept = by_size if num_sources <= _SOURCES else by_size[: _SOURCES - 1]
    column = np.full(num_sources, len(kept))
    column[kept] = np.arange(len(kept))
    labels = [names[i] if names.count(names[i]) == 1 else f"{i + 1} {names[i]}" for i in kept.tolist()]
    labels += [f"{num_sources - len(kept)} others"] if len(kept) < num_sources else []
    counts = [np.bincount(column[trace.sources[begin:end]], minlength=len(labels)) for begin, end in bounds]
    return edges, np.array([count / count.sum() for count in counts]), labels


def draw(trace: Trace, output: Path, title: str, difficulty: str) -> None:
    """Write the picture as PNG.

    Args:
        trace: the order.
        output: where.
        title: stands above it.
        difficulty: what the difficulty is called.

    Raises:
        DataError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    rows = 3 if len(trace.source_names) > 1 else 2
    figure, panels = pyplot.subplots(rows, 1, figsize=(11, 4.25 * rows), sharex=True, layout="constrained")
    figure.suptitle(title)
    _draw_bands(panels[0], trace, difficulty)
    edges, parts, limits = shares(trace)
    ranges = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(limits.tolist())]
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 1, len(ranges)))
    _draw_shares(panels[1], (edges, parts), list(zip(ranges, colours, strict=True)), difficulty)
    panels[1].set_ylabel("share of samples by difficulty")
    if rows == 3:
        edges, parts, names = source_shares(trace)
        colours = pyplot.get_cmap("tab10")(np.arange(len(names)))
        _draw_shares(panels[2], (edges, parts), list(zip(names, colours, strict=True)), "dataset")
        panels[2].set_ylabel("share of samples by dataset")
    panels[-1].set_xlim(0, trace.num_places)
    panels[-1].set_xlabel("position in the order (samples)")
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    try:
        figure.savefig(output, format="png", dpi=100)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error})", fix="Give another --plot") from None
    finally:
        pyplot.close(figure)


def _draw_bands(panel: Any, trace: Trace, difficulty: str) -> None:
    edges, rows = bands(trace)
    panel.stairs(rows[:, 3], edges, baseline=rows[:, 1], fill=True, alpha=0.25, label="10th to 90th percentile")
    panel.stairs(rows[:, 2], edges, baseline=None, color="tab:blue", linestyle=":", label="median")
    panel.stairs(rows[:, 0], edges, baseline=None, color="black", label="mean")
    panel.set_ylabel(difficulty)
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left")


def _draw_shares(
    panel: Any,
    stretches: tuple[NDArray[np.float64], NDArray[np.float64]],
    layers: list[tuple[str, NDArray[np.float64]]],
    what: str,
) -> None:
    """Stack shares float64 `[b, k]` between edges float64 `[b + 1]`, with the label and colour of each layer."""
    from matplotlib.ticker import PercentFormatter

    edges, parts = stretches
    bottoms = np.zeros(len(parts))
    for index, (label, colour) in enumerate(layers):
        tops = bottoms + parts[:, index]
        panel.stairs(tops, edges, baseline=bottoms, fill=True, color=colour, label=label)
        bottoms = tops
    panel.set_ylim(0, 1)
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], title=what, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _stretches(trace: Trace) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """Edges float64 `[b + 1]` of b stretches, and the begin and end of each in the trace; none is empty."""
    count = min(BINS, len(trace.places))
    bounds = len(trace.places) * np.arange(count + 1) // count
    edges = np.append(trace.places[bounds[:-1]], trace.num_places).astype(np.float64)
    return edges, list(pairwise(bounds.tolist()))
