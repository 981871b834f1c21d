"""Chunks cover every row once, in order, and are no larger than they may be."""

from __future__ import annotations

import pytest

from megatron_ext.model import row_chunks as module
from megatron_ext.model.row_chunks import row_chunks


@pytest.mark.parametrize("rows", [0, 1, 5, 6])
@pytest.mark.parametrize("columns", [0, 1, 3, 1000])
def test_chunks_cover_every_row_once(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 6)
    chunks = [range(rows)[chunk] for chunk in row_chunks(rows, columns)]
    assert [row for chunk in chunks for row in chunk] == (list(range(rows)) if columns else [])
    assert all(len(chunk) * columns <= max(6, columns) for chunk in chunks)
