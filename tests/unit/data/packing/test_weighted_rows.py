"""Weights: floor(w) copies and one more by chance, reproducible; weights that mean nothing are refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.packing.weighted_rows import check_weights, draw_copies, read_weights_file, shuffled_pool
from megatron_ext.errors import DataError


def test_whole_weights_draw_nothing():
    assert draw_copies([2.0, 0.0, 1.0], [2, 3, 1], 7).tolist() == [2, 2, 0, 0, 0, 1]


def test_the_example_of_1000_rows_twice_and_1000_rows_once_gives_a_pool_of_3000():
    copies = draw_copies([2.0, 1.0], [1000, 1000], 1234)
    pool = shuffled_pool(np.arange(2000), copies, 1234)
    assert len(pool) == 3000
    assert np.bincount(pool).tolist() == [2] * 1000 + [1] * 1000


@pytest.mark.parametrize("weight", [0.25, 0.9, 2.5])
def test_a_fraction_is_a_probability(weight: float):
    count = 40_000
    copies = draw_copies([weight], [count], 3)
    whole, fraction = math.floor(weight), weight - math.floor(weight)
    assert set(copies.tolist()) == {whole, whole + 1}
    more = np.count_nonzero(copies > whole)
    assert abs(more - count * fraction) < 5 * math.sqrt(count * fraction * (1 - fraction))


def test_draws_depend_on_seed_and_place_alone():
    one = draw_copies([0.5, 0.5], [100, 100], 1)
    assert one.tolist() == draw_copies([0.5, 0.5], [100, 100], 1).tolist()
    assert one[:100].tolist() == draw_copies([0.5], [100], 1).tolist()
    assert one[:100].tolist() != one[100:].tolist()
    assert one.tolist() != draw_copies([0.5, 0.5], [100, 100], 2).tolist()
    # written down: another numpy or machine must draw the same
    assert draw_copies([0.5], [16], 1234).tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0]


def test_the_shuffle_keeps_every_copy_and_depends_on_the_seed():
    rows, copies = np.array([4, 7, 9]), np.array([2, 0, 3])
    assert sorted(shuffled_pool(rows, copies, 1).tolist()) == [4, 4, 9, 9, 9]
    many, ones = np.arange(50), np.ones(50, np.int64)
    assert shuffled_pool(many, ones, 1).tolist() != shuffled_pool(many, ones, 2).tolist()
    assert shuffled_pool(rows, np.zeros(3, np.int64), 1).tolist() == []


def test_a_pool_beyond_all_measure_is_refused():
    with pytest.raises(DataError, match="2147483648 rows"):
        draw_copies([1e9], [10], 1)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_impossible_weights_are_refused(weight: float):
    with pytest.raises(DataError, match=r"of b is not possible"):
        check_weights([1.0, weight], ["a", "b"])


def test_weights_that_fit_no_input_are_refused():
    with pytest.raises(DataError, match="1 numbers for 2 inputs"):
        check_weights([1.0], ["a", "b"])
    with pytest.raises(DataError, match="all weights are 0"):
        check_weights([0.0, 0.0], ["a", "b"])


def test_a_file_of_weights_is_read_in_the_order_of_the_inputs(tmp_path: Path):
    path = tmp_path / "w.json"
    path.write_text('{"data/b": 1, "data/./a": 2.5}')
    assert read_weights_file(str(path), ["data/a", "data/b"]) == (2.5, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 1, "c": 1}', "names c, which is missing"),
        ('{"a": 1}', "no weight for the input b"),
        ('{"a": 1, "b": "2"}', "weight '2', not a number"),
        ('{"a": 1, "b": true}', "weight True, not a number"),
        ('{"a": 1, "b": 1, "a": 2}', "names a dataset twice"),
        ("[1, 2]", "not a JSON object"),
        ("{", "cannot be used"),
        ("[" * 100_000, "cannot be used"),
    ],
)
def test_files_of_weights_that_mean_nothing_are_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "w.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_weights_file(str(path), ["a", "b"])
    with pytest.raises(DataError, match="cannot be used"):
        read_weights_file(str(tmp_path / "missing.json"), ["a", "b"])
