"""Settings become the order of their method, with its own numbers only in the record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_ext.data.curriculum.orders import JitteredOrder, SortedOrder
from megatron_ext.data.curriculum.settings import METHODS, CurriculumSettings
from megatron_ext.data.curriculum.stages import parse_stage

STAGES = (parse_stage("0-50:30"),)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_order_and_a_record(method: str):
    settings = CurriculumSettings(method, seed=3, buckets=4, stages=STAGES)
    order = settings.order(20, 10)
    places = order.places(np.arange(20))
    assert sorted(places[places >= 0].tolist()) == list(range(3 if method == "staged" else 20))
    record = settings.described()
    assert json.loads(json.dumps(record))["seed"] == 3
    assert len(record) == 4 + (method != "sorted")


def test_jitter_wraps_the_method():
    assert isinstance(CurriculumSettings("sorted").order(20, 10), SortedOrder)
    assert isinstance(CurriculumSettings("sorted", jitter_buckets=2).order(20, 10), JitteredOrder)
