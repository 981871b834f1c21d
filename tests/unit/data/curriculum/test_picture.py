"""The numbers of the picture are those of the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum.build import Trace
from megatron_ext.data.curriculum.picture import bands, draw, shares, source_shares
from megatron_ext.errors import DataError


def trace_of(
    difficulties: np.ndarray, stride: int = 1, sources: np.ndarray | None = None, names: tuple[str, ...] = ("data",)
) -> Trace:
    places = np.arange(len(difficulties)) * stride
    sources = np.zeros(len(difficulties), np.int64) if sources is None else sources
    return Trace(places, difficulties.astype(np.float32), sources, names, len(difficulties) * stride)


def test_bands_hold_mean_and_percentiles_of_each_stretch():
    edges, rows = bands(trace_of(np.arange(2000.0), stride=5))
    assert len(rows) == 200 and edges.tolist() == [50.0 * i for i in range(201)]
    assert rows[3].tolist() == pytest.approx([34.5, 30.9, 34.5, 38.1])


def test_shares_of_a_sorted_order_are_steps_and_of_a_shuffled_one_equal():
    sorted_order = np.arange(2000.0)
    _, parts, limits = shares(trace_of(sorted_order))
    assert parts.shape == (200, 10) and np.allclose(parts.sum(axis=1), 1)
    assert (parts.argmax(axis=1) == np.repeat(np.arange(10), 20)).mean() > 0.95
    assert limits[0] == 0 and limits[-1] == 1999
    _, parts, _ = shares(trace_of(np.random.default_rng(0).permutation(sorted_order)))
    assert np.abs(parts.mean(axis=0) - 0.1).max() < 0.01


def test_shares_of_sources_are_counted_in_each_stretch():
    sources = np.concatenate([np.zeros(1000, int), np.tile([1, 1, 1, 0], 250)])
    edges, parts, names = source_shares(trace_of(np.arange(2000.0), 5, sources, ("data", "data")))
    assert names == ["1 data", "2 data"] and edges.tolist() == [50.0 * i for i in range(201)]
    assert (parts[:100] == [1, 0]).all() and (abs(parts[100:] - [0.25, 0.75]) < 0.051).all()


def test_many_sources_are_drawn_as_the_largest_and_the_others():
    sources = np.random.default_rng(0).permutation(np.repeat(np.arange(30), np.arange(30)))
    _, parts, names = source_shares(trace_of(np.zeros(len(sources)), sources=sources, names=tuple(map(str, range(30)))))
    assert names == [*map(str, range(29, 20, -1)), "21 others"] and np.allclose(parts.sum(axis=1), 1)
    _, parts, names = source_shares(trace_of(np.zeros(9), sources=np.zeros(9, int), names=("a", "b")))
    assert names == ["a", "b"] and (parts == [1, 0]).all()


@pytest.mark.parametrize("count", [2, 12])
def test_several_datasets_have_a_panel_of_their_own(count: int, tmp_path: Path):
    sources = np.arange(500) % count
    for names in (("data",) * count, ("data",)):
        trace = trace_of(np.arange(500.0), sources=sources if len(names) > 1 else None, names=names)
        draw(trace, tmp_path / f"{len(names)}.png", "title", "made up")
    heights = [int.from_bytes((tmp_path / f"{n}.png").read_bytes()[20:24], "big") for n in (1, count)]
    assert heights == [850, 1275]


@pytest.mark.parametrize("difficulties", [[1.0], [2.0] * 500, [0.0, 1.0] * 300, list(range(205))])
def test_any_order_can_be_drawn(difficulties: list[float], tmp_path: Path):
    trace = trace_of(np.array(difficulties))
    assert np.allclose(shares(trace)[1].sum(axis=1), 1)
    draw(trace, tmp_path / "x.png", "title", "made up")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="--plot"):
        draw(trace, tmp_path / "absent" / "x.png", "title", "made up")
