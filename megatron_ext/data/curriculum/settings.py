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

    def order(self, num_samples: int, seq_length: int) -> CurriculumOrder:
        """The order of so many samples of so many tokens.

        Raises:
            MegatronExtError: a number does not fit the method or the samples.
        """
        order: CurriculumOrder = self._method(num_samples, seq_length)
        if self.jitter_buckets:
            return JitteredOrder(order, num_samples, self.jitter_buckets, self.seed)
        return order

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

    def _method(self, num_samples: int, seq_length: int) -> CurriculumOrder:
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
        return PhasedOrder(stage_phases(self.stages, num_samples, seq_length), num_samples, self.seed)
