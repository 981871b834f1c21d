"""Every legal layout of up to 8 processes, generated from the rules of `megatron_ext.config.rules`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.config.rules import failures
from megatron_ext.config.run import all_settings
from tests.distributed.tiny import tiny_run

FAMILIES = ("rope", "gqa", "wide", "isolated", "normed", "gpt2", "bloom", "moss", "yuan")
"""Models of `tiny.MODELS`, one of each architecture whose layers are cut differently."""

MOST_PROCESSES = 8
SAMPLES = 8
BATCH = f"--global-batch-size {SAMPLES} --micro-batch-size 1 --eval-iters 1"

Settings = Mapping[str, Any]

AXES: dict[str, dict[str, Settings]] = {
    "tensor": {f"tp{n}": {"tensor_model_parallel_size": n} for n in range(1, MOST_PROCESSES + 1)},
    "pipeline": {f"pp{n}": {"pipeline_model_parallel_size": n} for n in range(1, MOST_PROCESSES + 1)},
    "virtual": {"": {}, "vpp2": {"num_virtual_stages_per_pipeline_rank": 2}},
    "context": {"": {}, "cp2": {"context_parallel_size": 2}, "cp4": {"context_parallel_size": 4}},
    "sequence": {"": {}, "sp": {"sequence_parallel": True}},
    "optimizer": {
        "": {},
        "distopt": {"use_distributed_optimizer": True},
        "distopt-overlap": {
            "use_distributed_optimizer": True,
            "overlap_grad_reduce": True,
            "overlap_param_gather": True,
            "ddp_bucket_size": 20000,
        },
    },
    "recompute": {
        "": {},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        "selective": {"recompute_granularity": "selective"},
        "modules": {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp")},
    },
}
"""Axis -> name of a choice -> the settings that it is. The number of data-parallel ranks is what the others leave."""


@dataclass(frozen=True)
class Case:
    """One model in one layout; `choices` has one name per axis, in the order of `AXES`."""

    model: str
    processes: int
    choices: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join([self.model, f"of {self.processes}:", *filter(None, self.choices)])

    @property
    def settings(self) -> dict[str, Any]:
        chosen = [AXES[axis][choice] for axis, choice in zip(AXES, self.choices, strict=True)]
        settings = {name: value for settings in chosen for name, value in settings.items()}
        return settings | {"micro_batch_size": self._micro_batch_size(settings)}

    def _micro_batch_size(self, settings: Settings) -> int:
        """Few micro-batches, so few collectives: what fills the pipeline, and two at least, whose gradients add up."""
        stages = settings["pipeline_model_parallel_size"]
        sharing = settings["tensor_model_parallel_size"] * stages * settings.get("context_parallel_size", 1)
        samples = SAMPLES * sharing // self.processes
        fitting = [size for size in (4, 2) if samples % (size * max(2, stages)) == 0]
        return fitting[0] if fitting else 1

    @property
    def flags(self) -> str:
        """The command line of the layout."""
        words = [BATCH]
        for name, value in self.settings.items():
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [all_settings()[name].flag, *map(str, values)]
        return " ".join(words)


def legal_cases(model: str, processes: int) -> Iterator[Case]:
    """Yield every combination of choices that no rule refuses."""
    plain = tiny_run(model, BATCH, 1, Path("unread"))
    fitting = [[name for name, settings in axis.items() if _divides(settings, processes)] for axis in AXES.values()]
    for choices in itertools.product(*fitting):
        case = Case(model, processes, choices)
        if not failures(plain.with_values(world_size=processes, **case.settings)):
            yield case


def covering(cases: Sequence[Case], seed: int = 0, tries: int = 60) -> list[Case]:
    """Choose few of `cases` in which every two choices that any of them holds together still meet.

    Greedy: of `tries` random cases the one with most new pairs is taken next.
    """
    dice = random.Random(seed)
    pairs = {case: set(itertools.combinations(_marks(case), 2)) for case in cases}
    wanted: set = set().union(*pairs.values())
    chosen = []
    while wanted:
        holding = [case for case in cases if pairs[case] & wanted]
        best = max(dice.sample(holding, min(tries, len(holding))), key=lambda case: len(pairs[case] & wanted))
        chosen.append(best)
        wanted -= pairs[best]
    return chosen


def _divides(settings: Settings, processes: int) -> bool:
    """Leave out what the rules would refuse anyway, to have fewer combinations to ask them about."""
    return all(processes % size == 0 for name, size in settings.items() if name.endswith("_parallel_size"))


def _marks(case: Case) -> list[tuple[str, object]]:
    return [("model", case.model), ("processes", case.processes), *zip(AXES, case.choices, strict=True)]
