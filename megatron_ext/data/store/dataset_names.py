"""Which datasets a command line names: prefixes, names of their files, patterns, and the shards of one run."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.data.store.indexed import idx_path
from megatron_ext.errors import DataError

_SUFFIXES = (".idx", ".bin", ".loss_mask", ".manifest.json")
_GLOB_CHARACTERS = frozenset("*?[")
_SHARD = re.compile(r"(?P<base>.+)\.shard-(?P<index>\d+)-of-(?P<count>\d+)_(?P<key>.+)_document")


@dataclass(frozen=True)
class ShardName:
    """What the name `BASE.shard-I-of-N_KEY_document` says."""

    base: str
    index: int
    count: int
    key: str


def shard_name(prefix: str) -> ShardName | None:
    """The parts of a shard's name; None for a dataset that is named otherwise."""
    found = _SHARD.fullmatch(prefix)
    return found and ShardName(found["base"], int(found["index"]), int(found["count"]), found["key"])


def dataset_prefixes(names: Sequence[str]) -> list[str]:
    """The prefixes of the datasets that are named, in the order given; each once, even if several of its files are.

    The matches of a pattern come sorted, shards of one run by their number.

    Raises:
        DataError: a name is given twice, or a pattern matches no file of a dataset.
    """
    prefixes: list[str] = []
    for place, name in enumerate(names):
        if name in names[:place]:
            raise DataError(f"{name} is given twice", fix="Name it once")
        if not _GLOB_CHARACTERS & set(name) or idx_path(name).exists():
            prefixes.append(_without_suffix(name))
            continue
        matches = {_without_suffix(match) for match in glob.glob(name, recursive=True) if match.endswith(_SUFFIXES)}
        if not matches:
            raise DataError(
                f"{name} matches no dataset", f"Files of a dataset end in {', '.join(_SUFFIXES)}", "Check the pattern"
            )
        prefixes += sorted(matches, key=_sort_key)
    return list(dict.fromkeys(prefixes))


def shards_by_key(output_prefix: str) -> dict[str, list[str]]:
    """Key -> prefixes of the shards that a run with this --output-prefix left, by number.

    Raises:
        DataError: there is none.
    """
    pattern = f"{glob.escape(output_prefix)}.shard-*-of-*_document.idx"
    found: dict[str, list[str]] = {}
    for prefix in sorted((_without_suffix(match) for match in glob.glob(pattern)), key=_sort_key):
        name = shard_name(prefix)
        if name is not None and name.base == output_prefix:
            found.setdefault(name.key, []).append(prefix)
    if not found:
        raise DataError(
            f"there is no shard of {output_prefix}",
            f"The shards of a run are named {Path(output_prefix).name}.shard-I-of-N_KEY_document.idx",
            "Give the --output-prefix that tools/preprocess_data.py --shard was given",
        )
    return found


def quarantine_path(prefix: str, key: str) -> Path:
    """The quarantine file of the run that made a dataset: one for all keys, `PREFIX_KEY_document` beside it."""
    return Path(f"{prefix.removesuffix(f'_{key}_document')}.quarantine.jsonl")


def _without_suffix(name: str) -> str:
    for suffix in _SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _sort_key(prefix: str) -> tuple[str, str, int, int]:
    name = shard_name(prefix)
    return (prefix, "", 0, 0) if name is None else (name.base, name.key, name.count, name.index)
