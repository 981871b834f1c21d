"""An order as a picture: difficulty against position, and which part of the data stands where."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ext.data.curriculum.build import Trace
from megatron_ext.errors import DataError

BINS = 200
_TENTHS = 10


def bands(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Difficulty along an order, in at most 200 equal stretches.

    Returns:
        Edges of the stretches float64 `[b + 1]`; mean, 10th, 50th and 90th percentile in each, float64 `[b, 4]`.
    """
    edges, parts = _stretches(trace)
    rows = [[part.mean(dtype=np.float64), *np.percentile(part, [10, 50, 90])] for part in parts]
    return edges, np.array(rows, np.float64)


def shares(trace: Trace) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What is drawn where: the shares of the tenths of the data by difficulty.

    Returns:
        Edges as of `bands`; the shares in each stretch, float64 `[b, t]`; the difficulties that divide the tenths,
        float64 `[t + 1]`, which are fewer than ten where many samples are equally difficult.
    """
    edges, parts = _stretches(trace)
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
    from matplotlib.ticker import EngFormatter, PercentFormatter

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 8.5), sharex=True, layout="constrained")
    figure.suptitle(title)
    edges, rows = bands(trace)
    above.stairs(rows[:, 3], edges, baseline=rows[:, 1], fill=True, alpha=0.25, label="10th to 90th percentile")
    above.stairs(rows[:, 2], edges, baseline=None, color="tab:blue", linestyle=":", label="median")
    above.stairs(rows[:, 0], edges, baseline=None, color="black", label="mean")
    above.set_ylabel(difficulty)
    above.grid(alpha=0.3)
    above.legend(loc="upper left")
    _, parts, limits = shares(trace)
    colours = pyplot.get_cmap("viridis")(np.linspace(0, 1, parts.shape[1]))
    bottoms = np.zeros(len(parts))
    for index in range(parts.shape[1]):
        tops = bottoms + parts[:, index]
        label = f"{limits[index]:.4g} to {limits[index + 1]:.4g}"
        below.stairs(tops, edges, baseline=bottoms, fill=True, color=colours[index], label=label)
        bottoms = tops
    below.set_ylabel("share of samples by difficulty")
    below.set_ylim(0, 1)
    below.yaxis.set_major_formatter(PercentFormatter(1))
    handles, labels = below.get_legend_handles_labels()
    below.legend(handles[::-1], labels[::-1], title=difficulty, loc="center left", bbox_to_anchor=(1.0, 0.5))
    below.set_xlim(0, trace.num_places)
    below.set_xlabel("position in the order (samples)")
    below.xaxis.set_major_formatter(EngFormatter(sep=""))
    try:
        figure.savefig(output, format="png", dpi=100)
    except OSError as error:
        raise DataError(f"{output} cannot be written ({error})", fix="Give another --plot") from None
    finally:
        pyplot.close(figure)


def _stretches(trace: Trace) -> tuple[NDArray[np.float64], list[NDArray[np.float32]]]:
    """Edges float64 `[b + 1]` and the difficulties in each of b stretches, none of them empty."""
    count = min(BINS, len(trace.places))
    bounds = len(trace.places) * np.arange(count + 1) // count
    edges = np.append(trace.places[bounds[:-1]], trace.num_places).astype(np.float64)
    return edges, [trace.difficulties[begin:end] for begin, end in pairwise(bounds.tolist())]
