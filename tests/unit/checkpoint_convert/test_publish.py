"""An exported folder is there whole or not at all."""

from __future__ import annotations

import os

import pytest

from checkpoint_convert.publish import published_folder
from megatron_ext.errors import ConversionError


def test_the_folder_appears_at_the_end_readable_by_all(tmp_path):
    target = tmp_path / "deep" / "out"
    with published_folder(target) as folder:
        assert folder.parent == target.parent and not target.exists()
        (folder / "file").write_text("x")
        (folder / "file").chmod(0o600)
    assert (target / "file").read_text() == "x"
    assert oct((target / "file").stat().st_mode & 0o777) == "0o644"
    assert oct(target.stat().st_mode & 0o777) == "0o755"
    assert os.listdir(target.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), published_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_occupied_place_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        with pytest.raises(ConversionError, match="--save"), published_folder(tmp_path / name):
            raise AssertionError("entered")
    assert (tmp_path / "full" / "kept").read_text() == "x"
    (tmp_path / "empty").mkdir()
    with published_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("x")
    assert os.listdir(tmp_path / "empty") == ["file"]
