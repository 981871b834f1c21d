"""The samples that an order is made of: those of one dataset after the other, and what the datasets are called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from megatron_ext.errors import ConfigError
from megatron_ext.native_numpy import Int64Array

_SHOWN = 20


@dataclass(frozen=True)
class SampleSpace:
    """Samples 0, 1, 2, ... of several datasets laid end to end.

    Attributes:
        names: what each dataset is called; two may be called the same.
        sizes: samples of each.
        seq_length: tokens in a sample.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    seq_length: int

    @property
    def num_samples(self) -> int:
        """Samples of all datasets."""
        return sum(self.sizes)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first sample of each dataset, and last the number of all samples."""
        return (0, *accumulate(self.sizes))

    def datasets_of(self, samples: Int64Array) -> Int64Array:
        """The dataset of each sample, int64 `[k]`."""
        return np.searchsorted(np.array(self.starts), samples, side="right") - 1

    def dataset(self, word: str, where: str) -> int:
        """Which dataset a word names: its name, or its number, the first is 1.

        Args:
            word: as the user typed it.
            where: what the message begins with.

        Raises:
            ConfigError: it names no dataset, or more than one.
        """
        found = [index for index, name in enumerate(self.names) if word in (name, str(index + 1))]
        if len(found) == 1:
            return found[0]
        there = ", ".join(f"{number} {name}" for number, name in enumerate(self.names[:_SHOWN], 1))
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        if found:
            raise ConfigError(
                f"{where} names {word!r}, which may be dataset {' or '.join(str(index + 1) for index in found)}",
                f"The datasets are {there}{more}",
                "Give a number that is no dataset's name, or give the files other names",
            )
        raise ConfigError(
            f"{where} names {word!r}, which is no dataset of --data-path",
            f"The datasets are {there}{more}",
            "Name a dataset by the last part of its prefix, or by its number",
        )
