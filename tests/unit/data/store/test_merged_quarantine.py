"""The joined quarantine has the bytes of one run's: record numbers count from the start of each file."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.preprocessing.pending import PendingFile
from megatron_ext.data.records import BadRecord
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.merged_quarantine import join_quarantines
from tests.unit.data.described import Record, write_run, write_shards


def joined(prefixes: list[str], folder: Path) -> bytes:
    manifests = [IndexedDataset(prefix).manifest for prefix in prefixes]
    paths = [Path(f"{prefix.removesuffix('_text_document')}.quarantine.jsonl") for prefix in prefixes]
    output = PendingFile(folder / "joined")
    join_quarantines(paths, [manifest for manifest in manifests if manifest], output)
    output.finish()
    output.publish()
    return (folder / "joined").read_bytes()


def test_records_of_a_file_that_was_cut_are_numbered_from_its_start(tmp_path: Path):
    bad = [Record("a", None)] * 5 + [Record("b", None)] * 3
    prefixes = write_shards(tmp_path / "x", bad, [2, 2, 4, 6])
    lines = [json.loads(line) for line in joined(prefixes, tmp_path).splitlines()]
    assert [(line["file"], line["line"]) for line in lines] == [("a", i) for i in range(1, 6)] + [
        ("b", i) for i in range(1, 4)
    ]


@settings(deadline=None, max_examples=50)
@given(name=st.text(min_size=1), detail=st.text(), raw=st.binary(), line=st.integers(1, 10**12))
def test_any_name_and_any_record_come_through(name: str, detail: str, raw: bytes, line: int, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quarantine")
    prefix = write_run(folder / "x", [Record(name, None)])
    wanted = BadRecord(0, line, "broken JSON", detail, raw).to_json(name)
    (folder / "x.quarantine.jsonl").write_bytes(wanted)
    assert joined([prefix], folder) == wanted
