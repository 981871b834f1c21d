"""Settings become the order of their method, with its own numbers only in the record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_ext.data.curriculum.orders import JitteredOrder, SortedOrder
from megatron_ext.data.curriculum.sample_space import SampleSpace
from megatron_ext.data.curriculum.settings import METHODS, CurriculumSettings
from megatron_ext.data.curriculum.stages import parse_stage
from megatron_ext.errors import ConfigError

SPACE = SampleSpace(("a", "b"), (12, 8), 10)
STAGES = (parse_stage("0-50:30"),)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_order_and_a_record(method: str):
    settings = CurriculumSettings(method, seed=3, buckets=4, stages=STAGES)
    order = settings.order(SPACE)
    places = order.places(np.arange(20))
    assert sorted(places[places >= 0].tolist()) == list(range(3 if method == "staged" else 20))
    record = settings.described()
    assert json.loads(json.dumps(record))["seed"] == 3
    assert len(record) == 4 + (method != "sorted")


def test_jitter_wraps_the_method():
    assert isinstance(CurriculumSettings("sorted").order(SPACE), SortedOrder)
    assert isinstance(CurriculumSettings("sorted", jitter_buckets=2).order(SPACE), JitteredOrder)


def test_stages_that_name_datasets_rank_them_apart():
    settings = CurriculumSettings("staged", stages=(parse_stage("a*1@0-50,b*1@0-50:40"), parse_stage("b*1:40")))
    assert settings.ranks_datasets_apart and not CurriculumSettings("staged", stages=STAGES).ranks_datasets_apart
    places = settings.order(SPACE).places(np.arange(20))
    first, second = (np.flatnonzero((places >= begin) & (places < begin + 4)).tolist() for begin in (0, 4))
    assert len([rank for rank in first if rank < 6]) == len([rank for rank in first if 12 <= rank < 16]) == 2
    assert len([rank for rank in second if rank >= 12]) == 4 and sorted(places)[-9:] == [-1, *range(8)]
    with pytest.raises(ConfigError, match="--jitter-buckets 2"):
        CurriculumSettings("staged", stages=settings.stages, jitter_buckets=2).order(SPACE)
