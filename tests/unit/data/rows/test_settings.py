"""Settings are plain values: they survive the way to a worker process and cannot be changed there."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from megatron_ext.data.rows.settings import EncodeSettings, FimSettings, RowSettings


def test_settings_can_be_sent_to_a_worker():
    rows = RowSettings("text", json_keys=("a",), fim=FimSettings(rate=0.5))
    settings = EncodeSettings(rows, "uint16")
    assert copy.deepcopy(settings) == settings
    assert len({settings, dataclasses.replace(settings, dtype="int32")}) == 2


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RowSettings().row_format = "yuan"
