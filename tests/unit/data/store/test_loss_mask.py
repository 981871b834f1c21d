"""The sidecar's name and codes are a file format: they never change."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.data.store.loss_mask import CODES, LEARNED, LEARNED_AS_EOD, NOT_LEARNED, loss_mask_path


def test_codes_and_file_name_are_fixed():
    assert (NOT_LEARNED, LEARNED, LEARNED_AS_EOD) == CODES == (0, 1, 2)
    assert loss_mask_path("folder/data_text_document") == Path("folder/data_text_document.loss_mask")
