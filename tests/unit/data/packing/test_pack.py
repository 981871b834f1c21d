"""A whole run: blocks and masks on disk, conservation in the manifest, refusals that leave everything as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.packing.pack import pack
from megatron_ext.data.packing.settings import METHODS
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import DatasetManifest, read_manifest, verify_checksums
from megatron_ext.errors import ConfigError, DataError
from tests.unit.data.packing.finished import BOS, PAD, contents, finished, settings_for

METHOD_SETTINGS: dict[str, dict[str, Any]] = {
    "overlap": {"seq_length": 32, "bos_id": BOS},
    "first-fit": {"seq_length": 32, "pad_id": PAD},
    "buckets": {"bucket_sizes": (8, 32)},
    "stream": {"seq_length": 32},
}


def rows_with_masks(lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Documents of a BOS and rising ids, no two alike, whose second half is learned."""
    documents, next_id = [], 100
    for length in lengths:
        documents.append([BOS, *range(next_id, next_id + length - 1)] if length else [])
        next_id += length
    return documents, [[int(2 * place >= length) for place in range(length)] for length in lengths]


def run(folder: Path, method: str, inputs: list[str], **values: Any) -> dict[str, DatasetManifest]:
    chosen = {**METHOD_SETTINGS[method], "output_prefix": str(folder / "out"), **values}
    return pack(settings_for(method, inputs, **chosen))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


LENGTHS = st.lists(st.integers(0, 31), min_size=2, max_size=12).filter(
    lambda lengths: sum(lengths) >= 32 and any(0 < length < 22 for length in lengths)
)


@settings(max_examples=12)
@given(LENGTHS, st.sampled_from(METHODS), st.booleans())
def test_every_token_is_learned_once_dropped_or_stated(tmp_path_factory, lengths, method, with_mask):
    folder = tmp_path_factory.mktemp("run")
    documents, masks = rows_with_masks(lengths)
    half = len(documents) // 2
    first = finished(folder / "a", documents[:half], masks[:half] if with_mask else None)
    manifests = run(folder, method, [first, finished(folder / "b", documents[half:])])
    expected: dict[int, int] = {}
    for number, (document, mask) in enumerate(zip(documents, masks, strict=True)):
        learned = mask if with_mask and number < half else [1] * len(document)
        expected.update({token: code for token, code in zip(document, learned, strict=True) if token != BOS})
    times_learned = dict.fromkeys(expected, 0)
    seen: set[int] = set()
    for prefix, manifest in manifests.items():
        rows, codes = contents(prefix)
        verify_checksums(prefix)
        assert all(len(row) <= manifest.rows["seq_length"] for row in rows)
        for row, mask in zip(rows, codes or [[1] * len(row) for row in rows], strict=True):
            for token, code in zip(row, mask, strict=True):
                if token == PAD:
                    assert code == 0
                elif token != BOS:
                    seen.add(token)
                    times_learned[token] += code
        tokens = manifest.rows["tokens"]
        assert tokens["written"] == manifest.tokens == sum(map(len, rows))
        assert (
            tokens["read"] + tokens["repeated"] + tokens["padding"] - sum(tokens["dropped"].values())
            == tokens["written"]
        )
        assert tokens["read"] == sum(lengths)
        assert manifest.records.add_up
        assert manifest.records.read == len(documents)
        assert manifest.records.empty == lengths.count(0)
        assert sum(manifest.quarantined_by_reason.values()) == manifest.records.quarantined
        assert manifest.largest_id == max(max(row) for row in rows)
    assert {token: times_learned[token] for token in seen} == {token: expected[token] for token in seen}


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_give_the_same_bytes_and_inputs_are_named(tmp_path: Path, method: str, capsys):
    documents, masks = rows_with_masks([20, 9, 0, 12, 31, 6, 17, 8])
    source = finished(tmp_path / "a", documents, masks)
    outputs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        manifests = run(tmp_path / name, method, [source])
        outputs.append(files(tmp_path / name))
    assert outputs[0] == outputs[1]
    manifest = next(iter(manifests.values()))
    assert manifest.rows["packing"] == method
    assert manifest.rows["input_identities"] == [IndexedDataset(source).identity]
    assert [(entry.path, entry.records) for entry in manifest.inputs] == [(source, 8)]
    assert (manifest.tokenizer.fingerprint, manifest.key) == ("one tokenizer", "text")
    printed = capsys.readouterr().out
    assert f"  = {'tokens written':<36} {manifest.tokens:>18,}" in printed
    assert "8 documents read = " in printed


def test_overlap_on_disk(tmp_path: Path):
    documents, masks = rows_with_masks([31, 20, 20])
    manifests = run(tmp_path, "overlap", [finished(tmp_path / "a", documents, masks)])
    rows, codes = contents(tmp_path / "out")
    stream = [token for document in documents for token in document]
    mask = [code for codes in masks for code in codes]
    # the look-back is one token: the BOS of the second document, which ends the first block
    assert rows == [stream[:32], stream[31:63]]
    assert codes == [mask[:32], [0, *mask[32:63]]]
    assert manifests[str(tmp_path / "out")].rows["tokens"] == {
        "read": 71, "repeated": 1, "padding": 0, "dropped": {"tail": 8}, "written": 64,
        "learned": sum(mask[1:32]) + sum(mask[32:63]),
    }  # fmt: skip


def test_first_fit_on_disk_pads_on_the_left_and_learns_the_answer_alone(tmp_path: Path):
    documents = [[BOS, 50, 51, 60, 61, 62, 2], [BOS, 52, 63, 2]]
    masks = [[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1]]  # questions of 3 and 2 tokens, answers of 4 and 2
    run(tmp_path, "first-fit", [finished(tmp_path / "a", documents, masks, append_eod=True)], seq_length=24)
    (row,), (mask,) = contents(tmp_path / "out")
    order = (0, 1) if row[13:] == documents[0] + documents[1] else (1, 0)
    assert row == [PAD] * 13 + [token for number in order for token in documents[number]]
    assert mask == [0] * 13 + [code for number in order for code in masks[number]]
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest.append_eod
    assert manifest.rows["tokens"]["padding"] == 13


def test_the_example_of_two_weighted_files(tmp_path: Path, capsys):
    first = finished(tmp_path / "a", [[7, 8, 9]] * 1000)
    manifests = run(tmp_path, "first-fit", [first, finished(tmp_path / "b", [[6, 5]] * 1000)], weights=(2.0, 1.0))
    manifest = manifests[str(tmp_path / "out")]
    assert manifest.rows["rows_in_pool"] == 3000
    rows, _ = contents(tmp_path / "out")
    assert sum(row.count(7) for row in rows) == 2000
    assert sum(row.count(6) for row in rows) == 1000
    assert manifest.rows["tokens"]["repeated"] == 3000


def test_buckets_write_a_dataset_each_and_say_what_padding_would_waste(tmp_path: Path, capsys):
    documents, _ = rows_with_masks([5, 3, 26, 8])
    manifests = run(tmp_path, "buckets", [finished(tmp_path / "a", documents)])
    assert list(manifests) == [f"{tmp_path}/out_8", f"{tmp_path}/out_32"]
    assert contents(tmp_path / "out_8") == ([documents[1], documents[3]], None)
    assert contents(tmp_path / "out_32") == ([documents[2] + documents[0]], None)
    # 42 tokens in blocks of 8 + 8 + 32, or four documents in 32 each
    assert "padding would be 12.5% of what is trained on, 67.2% with each document" in capsys.readouterr().out


def test_dropped_rows_are_listed(tmp_path: Path):
    documents, _ = rows_with_masks([5, 30, 4])
    first = finished(tmp_path / "a", documents[:1])
    run(tmp_path, "first-fit", [first, finished(tmp_path / "b", documents[1:])])
    lines = [json.loads(line) for line in (tmp_path / "out.dropped.jsonl").read_text().splitlines()]
    assert lines == [{"input": str(tmp_path / "b"), "document": 0, "tokens": 30, "reason": "too long"}]
    run(tmp_path, "first-fit", [first], overwrite=True)
    assert not (tmp_path / "out.dropped.jsonl").exists()


def test_what_exists_is_replaced_only_when_told(tmp_path: Path):
    documents, masks = rows_with_masks([30, 5, 30])
    source = finished(tmp_path / "a", documents, masks)
    run(tmp_path, "buckets", [source])
    before = files(tmp_path)
    with pytest.raises(DataError, match=r"out_8\.manifest\.json exists already.*--overwrite"):
        run(tmp_path, "buckets", [source])
    assert files(tmp_path) == before
    short = finished(tmp_path / "short", documents[1:2])
    run(tmp_path, "buckets", [short], overwrite=True)
    # the bucket without a document leaves nothing of the run before
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out_8.bin", "out_8.idx", "out_8.manifest.json"]


def test_an_input_is_never_overwritten(tmp_path: Path):
    source = finished(tmp_path / "a", [[BOS] * 40])
    before = files(tmp_path)
    with pytest.raises(DataError, match="would replace the input"):
        run(tmp_path, "stream", [source], output_prefix=f"{tmp_path}/./a", overwrite=True)
    assert files(tmp_path) == before


def test_a_run_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch):
    source = finished(tmp_path / "a", [[BOS] * 70])
    run(tmp_path, "stream", [source])
    before = files(tmp_path)
    monkeypatch.setattr("megatron_ext.data.store.indexed_writer.IndexedWriter.finish", _full_disk)
    with pytest.raises(DataError, match="No space left"):
        run(tmp_path, "stream", [source], overwrite=True)
    assert files(tmp_path) == before


def test_settings_are_checked_first_and_folders_are_made(tmp_path: Path):
    source = finished(tmp_path / "a", [[BOS] * 40])
    with pytest.raises(ConfigError, match="--seq-length 1 "):
        run(tmp_path, "stream", [source], seq_length=1)
    run(tmp_path, "stream", [source], output_prefix=str(tmp_path / "new" / "deep" / "out"))
    assert IndexedDataset(tmp_path / "new" / "deep" / "out").num_documents == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        run(tmp_path, "stream", [source], output_prefix=str(tmp_path / "file" / "out"))


def test_blocks_that_teach_nothing_are_warned_of(tmp_path: Path, capsys):
    source = finished(tmp_path / "a", [[5] * 64], [[0] * 40 + [1] * 24])
    manifests = run(tmp_path, "stream", [source])
    assert manifests[str(tmp_path / "out")].rows["blocks_without_labels"] == 1
    assert "nothing is learned in 1 of 2 blocks" in capsys.readouterr().err


def _full_disk(writer: object) -> None:
    raise DataError("writing failed (No space left on device)")
