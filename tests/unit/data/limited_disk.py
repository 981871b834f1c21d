"""A program: preprocessing runs under limits of file size, one after the other, told as lines of JSON.

It is a process of its own, because such a limit would meet the files of the test program too.

    python -m tests.unit.data.limited_disk FOLDER old|new LIMIT ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import resource
import sys
from pathlib import Path

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.errors import DataError


def request_for(folder: Path, limit: str, **values: object) -> PreprocessRequest:
    """The run of `FOLDER/in.jsonl` into `FOLDER/LIMIT/out`, which commits after every block."""
    return PreprocessRequest(
        (str(folder / "in.jsonl"),),
        str(folder / limit / "out"),
        "NullTokenizer",
        vocab_size=99,
        rows=RowSettings(append_eod=True),
        **{"commit_seconds": 0.0, **values},
    )


def content(folder: Path) -> dict[str, str]:
    """Name -> checksum of each file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@contextlib.contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def one_run(folder: Path, limit: int, with_old: bool) -> dict[str, object]:
    """What a run left that was not allowed more, and what the next one made of it."""
    place = folder / str(limit)
    request = request_for(folder, str(limit), overwrite=with_old)
    if with_old:
        old = dataclasses.replace(request, inputs=(str(folder / "old.jsonl"),))
        preprocess(old)
    before = content(place) if with_old else {}
    error = None
    try:
        with largest_file(limit):
            preprocess(request)
    except DataError as refused:
        error = str(refused)
    after = content(place) if place.exists() else {}
    if error is not None:
        preprocess(dataclasses.replace(request, resume=os.path.exists(f"{request.output_prefix}.journal")))
    return {"limit": limit, "error": error, "before": before, "after": after, "final": content(place)}


def main(folder: Path, with_old: bool, limits: list[int]) -> None:
    defaults = read_blocks.__defaults__
    assert defaults is not None
    read_blocks.__defaults__ = (*defaults[:2], 2000, *defaults[3:])
    os.fsync = lambda _: None  # type: ignore[assignment]
    for limit in limits:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            told = one_run(folder, limit, with_old)
        print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "old", list(map(int, sys.argv[3:])))
