"""One line per check, and a status that a script can rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run
from tests.unit.data.small import make_dataset
from tools import verify_dataset


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return write_run(tmp_path / "x", random_records(0, 30))


def damage(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[10] ^= 1
    Path(path).write_bytes(content)


def test_a_sound_dataset_is_status_0(prefix: str, capsys):
    assert verify_dataset.main([prefix]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == prefix and out[-1] == "1 of 1 datasets are sound"
    assert len(out) == 12 and all(line.startswith("  ok ") for line in out[1:-1])


def test_a_damaged_one_among_many_is_status_1_and_named_with_what_to_do(prefix: str, tmp_path: Path, capsys):
    other = write_run(tmp_path / "y", random_records(1, 30))
    damage(f"{other}.bin")
    assert verify_dataset.main([f"{tmp_path}/*_document.idx"]) == 1
    out = capsys.readouterr().out.splitlines()
    (line,) = [line for line in out if line.startswith("  damaged")]
    assert "y_text_document.bin is damaged: its sha256 is" in line and "copy it again" in line
    assert out[-1] == f"1 of 2 datasets are sound; damaged: {other}"
    assert verify_dataset.main([other, "--fast"]) == 0


def test_datasets_of_megatron_need_leave(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    assert verify_dataset.main([prefix]) == 1
    assert verify_dataset.main([prefix, "--no-manifest"]) == 0


def test_another_tokenizer_is_status_1(prefix: str, capsys):
    assert verify_dataset.main([prefix, "--vocab-size", "1000"]) == 0
    assert verify_dataset.main([prefix, "--vocab-size", "999"]) == 1
    assert "damaged  tokenizer" in capsys.readouterr().out


def test_a_dataset_that_does_not_exist(tmp_path: Path, capsys):
    assert verify_dataset.main([f"{tmp_path}/absent"]) == 1
    assert "absent.idx cannot be read" in capsys.readouterr().out
    with pytest.raises(DataError, match="matches no dataset"):
        verify_dataset.main([f"{tmp_path}/absent*"])
