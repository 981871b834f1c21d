"""Chunks cover every row once, in order, and are no larger than they may be."""

from __future__ import annotations

import pytest
import torch

from megatron_ext.model import row_chunks as module
from megatron_ext.model.row_chunks import fp32_chunks, row_chunks


@pytest.mark.parametrize("rows", [0, 1, 5, 6])
@pytest.mark.parametrize("columns", [0, 1, 3, 1000])
def test_chunks_cover_every_row_once(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 6)
    slices = list(row_chunks(rows, columns, 6))
    assert list(fp32_chunks(torch.empty(rows, columns))) == slices
    chunks = [range(rows)[chunk] for chunk in slices]
    assert [row for chunk in chunks for row in chunk] == (list(range(rows)) if columns else [])
    assert all(len(chunk) * columns <= max(6, columns) for chunk in chunks)


def test_a_vector_is_cut_as_a_matrix_of_one_column(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 6)
    assert list(fp32_chunks(torch.empty(13))) == [slice(0, 6), slice(6, 12), slice(12, 18)]


@pytest.mark.parametrize(("elements", "step"), [(63, 63), (64, 64), (100, 64), (524, 512)])
def test_long_chunks_are_whole_blocks_of_rows(elements: int, step: int):
    assert list(row_chunks(1000, 1, elements))[:2] == [slice(0, step), slice(step, 2 * step)]
