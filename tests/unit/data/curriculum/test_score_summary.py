"""Percentiles and examples against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_ext.data.curriculum import score_summary
from megatron_ext.data.curriculum.score_summary import percentile_rows, summarize


@pytest.mark.parametrize("count", [1, 2, 3, 100, 1001])
def test_a_summary_is_what_a_sort_says(count: int, monkeypatch):
    monkeypatch.setattr(score_summary, "_BLOCK", 64)
    values = np.random.default_rng(count).integers(0, 50, count).astype(np.float32)
    found, order = summarize(values), np.argsort(values, kind="stable").tolist()
    assert found.easiest == order[:3]
    assert found.hardest == np.argsort(-values, kind="stable")[:3].tolist()
    assert found.mean == pytest.approx(values.mean()) and found.documents == count
    for percent in (0, 1, 25, 50, 99, 100):
        value = found.percentile(percent)
        assert (values <= value).sum() >= percent / 100 * count and (values < value).sum() <= percent / 100 * count
    assert any(values[document] == found.percentile(50) for document in found.median)


def test_many_documents_are_sampled_but_their_ends_are_exact():
    values = np.arange(1000, dtype=np.float32)[::-1].copy()
    found = summarize(values, most_samples=100)
    assert len(found.sample) == 100 and found.percentile(0) == 0 and found.percentile(100) == 999
    assert found.percentile(50) == pytest.approx(500, abs=10)
    assert all(abs(values[document] - 500) <= 20 for document in found.median)
    assert percentile_rows({"x": found})[-1] == "p1 to p99 are those of 100 documents, evenly chosen"


def test_the_table_has_a_row_per_metric():
    lines = percentile_rows({"length": summarize(np.array([1, 2, 3, 4], np.float32))})
    assert lines[0].split() == ["metric", "mean", "min", "p1", "p10", "p25", "p50", "p75", "p90", "p99", "max"]
    assert lines[1].split() == ["length", "2.5", "1", "1", "1", "1", "2", "3", "4", "4", "4"] and len(lines) == 2
