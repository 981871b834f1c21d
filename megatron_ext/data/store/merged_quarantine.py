"""Joins the quarantine files of shards: the same lines, their record numbers counted from the start of the file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.store.manifest import DatasetManifest
from megatron_ext.errors import DataError

# The head of what BadRecord.to_json writes; the record itself, which may be huge, is not looked at.
_HEAD = re.compile(rb'\{"file": ("(?:[^"\\]|\\.)*"), "line": (\d+), ')


def join_quarantines(paths: Sequence[Path], manifests: Sequence[DatasetManifest], output: PendingFile) -> None:
    """Append the quarantined records of all shards to `output`, as one run would have written them.

    A shard counts the records of a file from the first one that it read: the records that earlier shards read of that
    file are added.

    Args:
        paths: quarantine file of each shard; it need not exist where nothing was quarantined.
        manifests: of the shards, in order.
        output: where to.

    Raises:
        DataError: a quarantine file is missing, damaged, or does not hold as many records as the manifest says.
    """
    earlier: Counter[str] = Counter()
    for path, manifest in zip(paths, manifests, strict=True):
        found = _append(path, earlier, output) if manifest.records.quarantined else 0
        if found != manifest.records.quarantined:
            raise DataError(
                f"{path} holds {found} records",
                f"The manifest of its shard says that {manifest.records.quarantined} were quarantined",
                "Copy the quarantine file of each shard beside it again",
            )
        for entry in manifest.inputs:
            earlier[entry.path] += entry.records


def _append(path: Path, earlier: Counter[str], output: PendingFile) -> int:
    number = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                head = _HEAD.match(line)
                if head is None or not line.endswith(b"}\n"):
                    raise DataError(f"line {number} of {path} is not a quarantined record", fix="Copy the file again")
                place = int(head[2]) + earlier[json.loads(head[1])]
                output.write(b'{"file": %b, "line": %d, ' % (head[1], place))
                output.write(memoryview(line)[head.end() :])
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror})",
            "The manifest of its shard says that records were quarantined",
            "Copy the quarantine file of each shard beside it",
        ) from None
    return number
