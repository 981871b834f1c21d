"""Datasets are found by name or by number, or refused with what there is."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.errors import ConfigError

SPACE = SampleSpace(("general", "finance", "1"), (5, 3, 4), 8)


def test_samples_are_numbered_dataset_after_dataset():
    assert SPACE.num_samples == 12 and SPACE.starts == (0, 5, 8, 12)
    assert SPACE.datasets_of(np.arange(12)).tolist() == [0] * 5 + [1] * 3 + [2] * 4


def test_a_dataset_is_named_by_name_or_number():
    assert [SPACE.dataset(word, "x") for word in ("general", "finance", "2", "3")] == [0, 1, 1, 2]
    assert SampleSpace(("1",), (5,), 8).dataset("1", "x") == 0


@pytest.mark.parametrize(
    ("names", "word", "message"),
    [
        (SPACE.names, "code", "here names 'code', which is no dataset.*1 general, 2 finance, 3 1"),
        (SPACE.names, "0", "no dataset"),
        (SPACE.names, "4", "no dataset"),
        (SPACE.names, "", "no dataset"),
        (SPACE.names, "1", "may be dataset 1 or 3"),
        (("a", "b", "a"), "a", "may be dataset 1 or 3.*1 a, 2 b, 3 a"),
        (("a",) * 50, "b", "20 a and 30 more"),
    ],
)
def test_what_names_none_or_several_is_refused(names: tuple[str, ...], word: str, message: str):
    with pytest.raises(ConfigError, match=message):
        SampleSpace(names, (1,) * len(names), 8).dataset(word, "here")
