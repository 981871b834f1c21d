"""The numbers of the picture are those of the order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.curriculum.build import Trace
from megatron_ext.data.curriculum.picture import bands, draw, shares
from megatron_ext.errors import DataError


def trace_of(difficulties: np.ndarray, stride: int = 1) -> Trace:
    places = np.arange(len(difficulties)) * stride
    return Trace(places, difficulties.astype(np.float32), len(difficulties) * stride)


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


@pytest.mark.parametrize("difficulties", [[1.0], [2.0] * 500, [0.0, 1.0] * 300, list(range(205))])
def test_any_order_can_be_drawn(difficulties: list[float], tmp_path: Path):
    trace = trace_of(np.array(difficulties))
    assert np.allclose(shares(trace)[1].sum(axis=1), 1)
    draw(trace, tmp_path / "x.png", "title", "made up")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match="--plot"):
        draw(trace, tmp_path / "absent" / "x.png", "title", "made up")
