"""Which files a run reads, and what each of them is: names, folders, patterns and standard input to `InputFile`s."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from megatron_ext import log
from megatron_ext.errors import DataError

FORMATS = ("jsonl", "json", "parquet", "text", "text-file")
"""jsonl: an object a line; json: one array; parquet: a row a record; text: a line a record; text-file: a file one."""

STANDARD_INPUT = "-"

_FORMAT_OF_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
}
_COMPRESSION_OF_SUFFIX = {".gz": "gz", ".zst": "zst"}
_OTHER_PACKINGS = {".bz2", ".xz", ".lzma", ".lz4", ".br", ".zip", ".7z", ".rar", ".tar", ".tgz"}
_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class InputFile:
    """One input.

    Attributes:
        path: where it is; None is standard input.
        format: one of FORMATS; "json" may turn out to hold JSON lines or a single object when it is read.
        compression: "" for none, "gz" or "zst".
    """

    path: Path | None
    format: str
    compression: str = ""

    @property
    def name(self) -> str:
        """The path as it was given, or words for standard input."""
        return "standard input" if self.path is None else str(self.path)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file with a size and a beginning to go back to: no pipe, no standard input."""
        return self.path is not None and self.path.is_file()

    @property
    def size_bytes(self) -> int | None:
        """Bytes on disk; None for a pipe and for standard input."""
        return self.path.stat().st_size if self.path is not None and self.is_regular else None


def expand_inputs(patterns: Sequence[str], input_format: str = "auto") -> list[InputFile]:
    """The inputs in the order given; the files of a folder or a pattern sorted by their paths.

    A folder is searched to its depths for files with a known suffix (with a forced format: for all files); names that
    begin with a dot are left out. A name with an unknown suffix that is given outright is read as JSON lines.

    Args:
        patterns: file names, folders, glob patterns (`**` for any depth), or `-` for standard input.
        input_format: "auto" goes by the suffix; one of FORMATS is forced on every input.

    Raises:
        DataError: an input is missing, unreadable or named twice, a folder or pattern gives no file, or a file is
            packed in a way that is not read here.
    """
    if input_format not in ("auto", *FORMATS):
        raise DataError(f"--input-format {input_format} is unknown", f"It is auto or one of {', '.join(FORMATS)}")
    skipped: Counter[str] = Counter()
    paths: list[Path | None] = []
    for pattern in patterns:
        paths += [None] if pattern == STANDARD_INPUT else _expand(pattern, input_format, skipped)
    if skipped:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in sorted(skipped.items()))
        log.warn(
            f"{skipped.total()} files of --input are skipped for their suffixes ({kinds}); --input-format takes all"
        )
    _refuse_twice(paths)
    return [_input_file(path, input_format) for path in paths]


def _expand(pattern: str, input_format: str, skipped: Counter[str]) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(path):  # unlike the path's own question, it bears names that are too long
        found = _folder_files(path, input_format, skipped)
        if not found:
            raise DataError(
                f"the folder {pattern} of --input has no file to read",
                f"Known suffixes are {' '.join(_FORMAT_OF_SUFFIX)}, each also with .gz or .zst",
                "Force --input-format, or name the files",
            )
        return found
    if os.path.lexists(pattern) or not _GLOB_CHARACTERS & set(pattern):
        return [path]
    found = []
    for match in sorted(_matches(pattern)):
        found += _folder_files(match, input_format, skipped) if match.is_dir() else [match]
    if not found:
        raise DataError(f"--input {pattern} matches no file")
    return found


def _folder_files(folder: Path, input_format: str, skipped: Counter[str]) -> list[Path]:
    found = []
    for path in sorted(_walk(folder)):
        if input_format == "auto" and (_known_format(path) is None or path.suffix.lower() in _OTHER_PACKINGS):
            skipped[path.suffix or "without suffix"] += 1
        else:
            found.append(path)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, links followed, each folder entered once: a link back up does not lead in circles."""
    entered: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)
            names = sorted(os.listdir(current))
        except OSError as error:
            raise DataError(f"the folder {current} of --input cannot be read ({error.strerror})") from None
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        paths = [current / name for name in names if not name.startswith(".")]
        pending += reversed([path for path in paths if path.is_dir()])
        yield from (path for path in paths if not path.is_dir())


def _matches(pattern: str) -> Iterator[Path]:
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from map(Path, glob.iglob(pattern))
        return
    # glob's own ** follows links in circles, in a time that doubles with every link
    fixed = next(index for index, part in enumerate(parts) if _GLOB_CHARACTERS & set(part))
    base = Path(*parts[:fixed])
    if base.is_dir():
        for path in _walk(base):
            if _parts_match(path.relative_to(base).parts, parts[fixed:]):
                yield path


def _parts_match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _parts_match(parts, pattern[1:]) or (bool(parts) and _parts_match(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _parts_match(parts[1:], pattern[1:])


def _refuse_twice(paths: Sequence[Path | None]) -> None:
    seen: set[str] = set()
    for path in paths:
        real = STANDARD_INPUT if path is None else os.path.realpath(path)
        if real in seen:
            raise DataError(f"--input names {path or '-'} twice", "Its records would be counted twice", "Name it once")
        seen.add(real)


def _input_file(path: Path | None, input_format: str) -> InputFile:
    if path is None:
        return InputFile(None, "jsonl" if input_format == "auto" else input_format)
    _check_readable(path)
    if path.suffix.lower() in _OTHER_PACKINGS or Path(path.stem).suffix.lower() == ".tar":
        raise DataError(
            f"--input {path} is packed in a way that is not read here",
            "Files may be plain, .gz or .zst",
            "Unpack it, or repack it with gzip or zstd",
        )
    known = _known_format(path) or "jsonl"
    compression = _COMPRESSION_OF_SUFFIX.get(path.suffix.lower(), "")
    return InputFile(path, known if input_format == "auto" else input_format, compression)


def _known_format(path: Path) -> str | None:
    name = path.stem if path.suffix.lower() in _COMPRESSION_OF_SUFFIX else path.name
    return _FORMAT_OF_SUFFIX.get(Path(name).suffix.lower())


def _check_readable(path: Path) -> None:
    try:
        if path.is_file() or not path.exists():
            path.open("rb").close()
    except OSError as error:
        raise DataError(f"--input {path} cannot be read ({error.strerror})") from None
