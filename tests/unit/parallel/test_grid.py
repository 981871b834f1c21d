"""The grid of ranks is a bijection, and megatron-core's own."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.parallel.grid import Coordinates, Grid

sizes = st.integers(1, 5)
grids = st.builds(Grid, tp_size=sizes, pp_size=sizes, dp_size=sizes, cp_size=st.integers(1, 3))


@given(grids)
def test_ranks_and_coordinates_are_one_to_one(grid: Grid):
    places = [grid.coordinates(rank) for rank in range(grid.world_size)]
    assert [grid.rank(place) for place in places] == list(range(grid.world_size))
    assert len(set(places)) == grid.world_size == grid.tp_size * grid.pp_size * grid.dp_size * grid.cp_size
    for place in places:
        assert 0 <= place.tp_rank < grid.tp_size and 0 <= place.pp_rank < grid.pp_size
        assert 0 <= place.dp_rank < grid.dp_size and 0 <= place.cp_rank < grid.cp_size


@given(grids)
def test_groups_are_those_of_megatron_core(grid: Grid):
    """Along each axis, the ranks that differ in it alone are one of megatron-core's groups, in its order."""
    from megatron.core.parallel_state import RankGenerator

    theirs = RankGenerator(
        tp=grid.tp_size, ep=1, dp=grid.dp_size, pp=grid.pp_size, cp=grid.cp_size, order="tp-cp-ep-dp-pp"
    )
    for axis in ("tp", "cp", "dp", "pp"):
        groups: dict[Coordinates, list[int]] = {}
        for rank in range(grid.world_size):
            at = asdict(grid.coordinates(rank))
            place = at[f"{axis}_rank"]
            group = groups.setdefault(Coordinates(**{**at, f"{axis}_rank": 0}), [])
            assert len(group) == place, "members come in the order of their coordinate"
            group.append(rank)
        assert sorted(groups.values()) == sorted(theirs.get_ranks(axis))


def test_a_grid_worked_out_by_hand():
    grid = Grid.of_world(16, tp_size=2, pp_size=2, cp_size=2)
    assert grid == Grid(tp_size=2, pp_size=2, dp_size=2, cp_size=2)
    assert grid.coordinates(0) == Coordinates(0, 0, 0, 0)
    assert grid.coordinates(1) == Coordinates(tp_rank=1, cp_rank=0, dp_rank=0, pp_rank=0)
    assert grid.coordinates(2) == Coordinates(tp_rank=0, cp_rank=1, dp_rank=0, pp_rank=0)
    assert grid.coordinates(4) == Coordinates(tp_rank=0, cp_rank=0, dp_rank=1, pp_rank=0)
    assert grid.coordinates(8) == Coordinates(tp_rank=0, cp_rank=0, dp_rank=0, pp_rank=1)


@given(sizes, sizes, sizes, st.integers(1, 3))
def test_data_parallelism_takes_what_is_left(dp: int, tp: int, pp: int, cp: int):
    assert Grid.of_world(dp * tp * pp * cp, tp, pp, cp).dp_size == dp


@pytest.mark.parametrize(("world_size", "tp", "pp", "cp"), [(6, 4, 1, 1), (8, 3, 2, 1), (2, 1, 1, 4), (1, 2, 1, 1)])
def test_a_world_that_does_not_divide_is_refused_with_its_numbers(world_size: int, tp: int, pp: int, cp: int):
    with pytest.raises(ValueError, match=f"{world_size} ranks .* tp {tp} x pp {pp} x cp {cp}"):
        Grid.of_world(world_size, tp, pp, cp)
