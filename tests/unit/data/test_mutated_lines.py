"""However a file is damaged, each of its lines is a document, empty, or listed with its very bytes; none is lost.

The expectation comes from Python's own JSON reader, which shares no code with the one that is used. `MUTANTS` in the
environment sets how many files are damaged, `MUTANT_SEED` which.
"""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest
import zstandard

from megatron_ext.errors import DataError
from tests.unit.data.byte_tokenizer import ByteTokenizer, use_tokenizer
from tests.unit.data.mutants import good_file, lines_of, mutant, text_of
from tests.unit.data.preprocessed import outcome

NUM_MUTANTS = int(os.environ.get("MUTANTS", "600"))
SEED = int(os.environ.get("MUTANT_SEED", "0"))
FILES_PER_RUN = 300


@pytest.fixture(autouse=True)
def byte_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tokenizer(monkeypatch, ByteTokenizer())
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("number", range(-(-NUM_MUTANTS // FILES_PER_RUN)))
def test_no_line_of_a_damaged_file_is_lost_or_taken_for_another(number: int, tmp_path: Path):
    dice = random.Random(f"{SEED} {number}")
    texts: list[str] = []
    bad: list[tuple[str, int, bytes]] = []
    num_lines = 0
    for file in range(FILES_PER_RUN):
        content = mutant(dice, good_file(dice))
        path = tmp_path / f"{file:05d}.jsonl"
        path.write_bytes(content)
        for line_number, line in enumerate(lines_of(content), 1):
            text = text_of(line)
            num_lines += 1
            if text is None:
                bad.append((str(path), line_number, line))
            elif text:
                texts.append(text)
    found = outcome((tmp_path / "*.jsonl",), tmp_path / "out", workers=1 + number % 2)
    assert [(one.file, one.line, one.raw) for one in found.bad] == bad
    assert found.documents == texts
    assert found.manifest.records.read == num_lines
    assert len(bad) > FILES_PER_RUN // 4, "the damage is too gentle"


def full_lines(dice: random.Random, count: int) -> list[bytes]:
    lines: list[bytes] = []
    while len(lines) < count:
        lines += [line for line in lines_of(good_file(dice)) if text_of(line)]
    return lines[:count]


def without_seams(text: bytes) -> bytes:
    """Without what may stand between two elements."""
    return text.translate(None, b" \t\r\n,")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_packed_file_is_refused_or_harmless(suffix: str, tmp_path: Path):
    """Headers hold bytes that mean nothing; everything else is covered by a checksum."""
    dice = random.Random(f"{SEED} {suffix}")
    refused = 0
    for number in range(NUM_MUTANTS // 10):
        lines = full_lines(dice, 5)
        content = b"\n".join(lines)
        zst = zstandard.ZstdCompressor(write_checksum=True)
        packed = gzip.compress(content, 1) if suffix == ".gz" else zst.compress(content)
        path = tmp_path / f"{number}.jsonl{suffix}"
        path.write_bytes(mutant(dice, packed))
        try:
            assert outcome((path,), tmp_path / f"out{number}").documents == list(map(text_of, lines))
        except DataError as error:
            assert f"{path.name} is damaged" in str(error) or "no document was found in 0 records" in str(error)
            refused += 1
    assert refused > NUM_MUTANTS // 20


def test_a_damaged_array_is_refused_or_keeps_every_good_element(tmp_path: Path):
    """As a document; or, where the damage hides where elements begin and end, among the bytes that are listed."""
    dice = random.Random(f"{SEED} array")
    apart = 0
    for number in range(NUM_MUTANTS // 5):
        lines = full_lines(dice, 6)
        content = mutant(dice, b"[\n" + b",\n".join(lines) + b"\n]\n")
        path = tmp_path / f"{number}.json"
        path.write_bytes(content)
        try:
            found = outcome((path,), tmp_path / f"out{number}")
        except DataError as error:
            assert f"{path.name} is damaged" in str(error) or "no document was found" in str(error)
            continue
        whole = [line for line in lines if b"\n" + line + b"," in content]
        lost = [line for line in whole if text_of(line) not in found.documents]
        listed = without_seams(b"".join(bad.raw for bad in found.bad))
        assert all(without_seams(line) in listed for line in lost)
        assert all(bad.raw in content for bad in found.bad)
        apart += not lost
    assert apart > NUM_MUTANTS // 10
