"""No damage to any file of a dataset goes unnoticed: it is refused at open, or found by the verification.

Every mutation is drawn from its own seed, which the failure names; `damage_is_found(folder, seeds)` replays it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.verify import VerifyOptions, verify_dataset
from megatron_ext.errors import DataError
from tests.unit.data.described import random_records, write_run

SUFFIXES = (".bin", ".idx", ".loss_mask", ".manifest.json")
NUM_MUTATIONS = 400
Files = dict[str, bytes]
Mutation = Callable[[np.random.Generator, bytes, bytes], bytes | None]


def flip_a_bit(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    place = int(random.integers(len(content)))
    return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]


def change_a_few_bytes(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    begin, end = span(random, content, 16)
    return content[:begin] + random.bytes(end - begin) + content[end:]


def cut_the_end(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    return content[: int(random.integers(len(content)))]


def cut_a_piece(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    begin, end = span(random, content, len(content))
    return content[:begin] + content[end:]


def append_bytes(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    return content + random.bytes(int(random.integers(1, 100)))


def append_zeros(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    return content + bytes(int(random.integers(1, 100)))


def insert_bytes(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    place = int(random.integers(len(content)))
    return content[:place] + random.bytes(int(random.integers(1, 17))) + content[place:]


def repeat_a_piece(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    begin, end = span(random, content, 64)
    return content[:end] + content[begin:end] + content[end:]


def zero_a_piece(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    begin, end = span(random, content, 512)
    return content[:begin] + bytes(end - begin) + content[end:]


def swap_two_pieces(random: np.random.Generator, content: bytes, _: bytes) -> bytes:
    size = int(random.choice([1, 2, 4, 8, 16]))
    first, second = sorted(int(place) * size for place in random.integers(0, len(content) // size, 2))
    pieces = content[:first], content[first : first + size], content[first + size : second], content[second:]
    return content if first == second else pieces[0] + pieces[3][:size] + pieces[2] + pieces[1] + pieces[3][size:]


def take_a_piece_of_another_dataset(random: np.random.Generator, content: bytes, other: bytes) -> bytes:
    begin, end = span(random, content, 64)
    return content[:begin] + other[begin:end] + content[end:]


def take_the_file_of_another_dataset(random: np.random.Generator, content: bytes, other: bytes) -> bytes:
    return other


def take_away(random: np.random.Generator, content: bytes, other: bytes) -> None:
    return None


MUTATIONS: tuple[Mutation, ...] = (
    flip_a_bit, change_a_few_bytes, cut_the_end, cut_a_piece, append_bytes, append_zeros, insert_bytes, repeat_a_piece,
    zero_a_piece, swap_two_pieces, take_a_piece_of_another_dataset, take_the_file_of_another_dataset, take_away,
)  # fmt: skip


def span(random: np.random.Generator, content: bytes, largest: int) -> tuple[int, int]:
    begin = int(random.integers(len(content)))
    return begin, begin + 1 + int(random.integers(min(largest, len(content) - begin)))


def replace(path: Path, content: bytes | None) -> None:
    """Make a new file: one that is emptied and written again is slow, as some file systems force it to disk."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def verdict(prefix: str) -> str:
    """At which of the two places a dataset is refused, or "accepted"; every token is looked at where it opens."""
    try:
        dataset = IndexedDataset(prefix)
    except DataError:
        return "refused at open"
    for index in range(len(dataset)):
        with suppress(DataError):  # an index that contradicts itself is refused where it is read
            dataset[index].sum()
    found = [finding for finding in verify_dataset(prefix, VerifyOptions(), lambda _: None) if not finding.ok]
    return "found by the verification" if found else "accepted"


def damage_is_found(folder: Path, seeds: Iterable[int]) -> Counter[str]:
    """How often each verdict was given; (kind, file) of one seed in the text of the failure."""
    good, other = (write_run(folder / str(seed), random_records(seed, 30)) for seed in range(2))
    files = {suffix: Path(good + suffix).read_bytes() for suffix in SUFFIXES}
    others = {suffix: Path(other + suffix).read_bytes() for suffix in SUFFIXES}
    assert verdict(good) == "accepted"
    verdicts: Counter[str] = Counter()
    for seed in seeds:
        random = np.random.default_rng(seed)
        kind = MUTATIONS[seed % len(MUTATIONS)]
        suffix = SUFFIXES[seed // len(MUTATIONS) % len(SUFFIXES)]
        changed = kind(random, files[suffix], others[suffix])
        if changed == files[suffix]:
            verdicts["no change"] += 1
            continue
        path = Path(good + suffix)
        replace(path, changed)
        result = verdict(good)
        assert result != "accepted", f"seed {seed}: {kind.__name__} in {suffix} was not noticed"
        verdicts[result] += 1
        replace(path, files[suffix])
    assert verdict(good) == "accepted"
    return verdicts


def test_every_mutation_is_refused_at_open_or_found_by_the_verification(tmp_path: Path):
    verdicts = damage_is_found(tmp_path, range(NUM_MUTATIONS))
    assert verdicts.total() == NUM_MUTATIONS
    assert verdicts["no change"] < NUM_MUTATIONS // 10
    assert min(verdicts["refused at open"], verdicts["found by the verification"]) > NUM_MUTATIONS // 10


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_single_bit_of_a_small_file_counts(suffix: str, tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(4, 3, bad_share=0))
    path = Path(prefix + suffix)
    content = path.read_bytes()
    step = 1 + 8 * len(content) // 100
    for bit in range(0, 8 * len(content), step):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        replace(path, bytes(damaged))
        assert verdict(prefix) != "accepted", f"bit {bit} of {suffix}"


@pytest.mark.parametrize(("one", "two"), [(one, two) for one in SUFFIXES for two in SUFFIXES if one < two])
def test_two_files_that_changed_their_names_are_found(one: str, two: str, tmp_path: Path):
    prefix = write_run(tmp_path / "x", random_records(0, 30))
    first, second = Path(prefix + one), Path(prefix + two)
    first.rename(tmp_path / "between")
    second.rename(first)
    (tmp_path / "between").rename(second)
    assert verdict(prefix) != "accepted"
