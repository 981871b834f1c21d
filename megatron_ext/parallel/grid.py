"""The grid of ranks: pure arithmetic, no process needed.

Order `tp-cp-dp-pp`, tensor parallel fastest, as megatron-core's default `tp-cp-ep-dp-pp` with one expert rank:
global rank = tp_rank + tp * (cp_rank + cp * (dp_rank + dp * pp_rank)).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coordinates:
    """Where one rank stands on each parallel axis, counted from 0."""

    tp_rank: int
    cp_rank: int
    dp_rank: int
    pp_rank: int


@dataclass(frozen=True)
class Grid:
    """Sizes of the parallel axes; `dp_size` is what the other axes leave of the world."""

    tp_size: int
    pp_size: int
    dp_size: int
    cp_size: int = 1

    @classmethod
    def of_world(cls, world_size: int, tp_size: int, pp_size: int, cp_size: int = 1) -> Grid:
        """Return the grid of `world_size` ranks.

        Raises:
            ValueError: `world_size` is not a multiple of tp * pp * cp.
        """
        model_size = tp_size * pp_size * cp_size
        if world_size % model_size:
            raise ValueError(f"{world_size} ranks are not a multiple of tp {tp_size} x pp {pp_size} x cp {cp_size}")
        return cls(tp_size, pp_size, world_size // model_size, cp_size)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.tp_size * self.cp_size * self.dp_size * self.pp_size

    def coordinates(self, rank: int) -> Coordinates:
        """Return where global rank `rank` stands."""
        rest, tp_rank = divmod(rank, self.tp_size)
        rest, cp_rank = divmod(rest, self.cp_size)
        pp_rank, dp_rank = divmod(rest, self.dp_size)
        return Coordinates(tp_rank, cp_rank, dp_rank, pp_rank)

    def rank(self, at: Coordinates) -> int:
        """Return the global rank that stands at `at`; the inverse of `coordinates`."""
        return at.tp_rank + self.tp_size * (at.cp_rank + self.cp_size * (at.dp_rank + self.dp_size * at.pp_rank))
