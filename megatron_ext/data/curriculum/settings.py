"""What makes a curriculum: a method, its numbers and a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.data.curriculum.orders import (
    CurriculumOrder,
    InterleavedOrder,
    JitteredOrder,
    SortedOrder,
    WarmupOrder,
)
from megatron_ext.data.curriculum.pacing import Pacing, paced_phases
from megatron_ext.data.curriculum.phases import PhasedOrder
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.data.curriculum.stages import Stage, stage_phases
from megatron_ext.errors import ConfigError

METHODS = ("sorted", "paced", "interleaved", "warmup", "staged")


@dataclass(frozen=True)
class CurriculumSettings:
    """How the samples are ordered.

    Attributes:
        method: one of METHODS.
        seed: decides every shuffle.
        reverse: the hardest counts as the easiest.
        jitter_buckets: buckets of like difficulty inside which samples are shuffled first; 0 for no shuffle.
        buckets: buckets of `interleaved`.
        warmup_share: share that `warmup` gives from easy to hard.
        pacing: of `paced`.
        stages: of `staged`.
    """

    method: str
    seed: int = 1234
    reverse: bool = False
    jitter_buckets: int = 0
    buckets: int = 10
    warmup_share: float = 0.1
    pacing: Pacing = field(default_factory=Pacing)
    stages: tuple[Stage, ...] = ()

    @property
    def ranks_datasets_apart(self) -> bool:
        """Whether the ranks of an order are those inside each dataset, one dataset after the other."""
        return self.method == "staged" and any(stage.shares for stage in self.stages)

    def order(self, space: SampleSpace) -> CurriculumOrder:
        """The order of these samples.

        Raises:
            MegatronExtError: a number does not fit the method or the samples.
        """
        order: CurriculumOrder = self._method(space)
        if not self.jitter_buckets:
            return order
        if self.ranks_datasets_apart:
            raise ConfigError(
                f"--jitter-buckets {self.jitter_buckets} has no meaning beside stages that name datasets",
                "Every stage is shuffled as a whole",
                "Leave it out",
            )
        return JitteredOrder(order, space.num_samples, self.jitter_buckets, self.seed)

    def described(self) -> dict[str, Any]:
        """The settings that count for this method, as plain values for the header of an order file."""
        own: dict[str, dict[str, Any]] = {
            "interleaved": {"buckets": self.buckets},
            "warmup": {"warmup_share": self.warmup_share},
            "paced": {"pacing": dataclasses.asdict(self.pacing)},
            "staged": {"stages": [stage.text for stage in self.stages]},
        }
        return {
            "method": self.method,
            **own.get(self.method, {}),
            "jitter_buckets": self.jitter_buckets,
            "reverse": self.reverse,
            "seed": self.seed,
        }

    def _method(self, space: SampleSpace) -> CurriculumOrder:
        num_samples = space.num_samples
        if self.method == "sorted":
            return SortedOrder(num_samples)
        if self.method == "warmup":
            return WarmupOrder(num_samples, self.warmup_share, self.seed)
        if self.method == "interleaved":
            return InterleavedOrder(num_samples, self.buckets)
        if self.method == "paced":
            return PhasedOrder(paced_phases(self.pacing, num_samples), num_samples, self.seed)
        if self.method != "staged":
            raise ConfigError(f"--method {self.method} does not exist", f"It is one of {', '.join(METHODS)}")
        if not self.stages:
            raise ConfigError("--method staged has no stages", fix="Give --stages, for example 0-30:2e9 20-100:8e9")
        return PhasedOrder(stage_phases(self.stages, space), num_samples, self.seed)
