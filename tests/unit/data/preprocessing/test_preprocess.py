"""From files to datasets: the bytes of megatron-core's builder, any number of workers, every record accounted for."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.sources.read import read_blocks
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.errors import DataError
from tests.unit.data.small import TEXTS, write_jsonl
from tests.unit.data.test_records import BAD_LINES


def outputs(prefix: Path) -> dict[str, bytes]:
    return {
        path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}[_.]*")
    }


def write_plainly(prefix: Path, texts: list[str], model_file: Path) -> None:
    """What a loop over the library and megatron-core's builder writes."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(model.get_piece_size()))
    for text in texts:
        ids = [*model.encode(text), model.eos_id()]
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = read_blocks.__defaults__
    assert defaults is not None
    monkeypatch.setattr(read_blocks, "__defaults__", (*defaults[:2], 500, *defaults[3:]))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_bytes_are_megatron_cores_for_any_number_of_workers(workers, small_blocks, tmp_path, model_file):
    texts = [f"{text} {index}" for index in range(60) for text in TEXTS]
    path = write_jsonl(tmp_path / "in.jsonl", texts)
    preprocess(
        PreprocessRequest(
            (str(path),),
            str(tmp_path / "ours"),
            "GPTSentencePieceTokenizer",
            str(model_file),
            rows=RowSettings(append_eod=True),
            workers=workers,
        )
    )
    write_plainly(tmp_path / "core", texts, model_file)
    for suffix in ("bin", "idx"):
        ours = (tmp_path / f"ours_text_document.{suffix}").read_bytes()
        assert ours == (tmp_path / f"core.{suffix}").read_bytes()


def mixed_file(path: Path) -> int:
    lines = []
    for index, (line, _) in enumerate(BAD_LINES):
        lines += [line, json.dumps({"text": f"good {index}"}).encode(), b'{"text": ""}']
    path.write_bytes(b"\n".join(lines))
    return len(lines)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_bad_line_is_listed_and_every_good_one_written(workers, small_blocks, tmp_path, model_file):
    path = tmp_path / "in.jsonl"
    num_records = mixed_file(path)
    request = PreprocessRequest(
        (str(path),), str(tmp_path / "out"), "GPTSentencePieceTokenizer", str(model_file), workers=workers
    )
    counts = preprocess(request)[0].records
    assert counts.add_up
    assert (counts.read, counts.quarantined) == (num_records, len(BAD_LINES))
    assert counts.written == counts.empty == len(BAD_LINES)
    listed = [json.loads(line) for line in (tmp_path / "out.quarantine.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in listed] == [
        (3 * index + 1, reason) for index, (_, reason) in enumerate(BAD_LINES)
    ]
    assert [base64.b64decode(entry["bytes_base64"]) for entry in listed] == [line for line, _ in BAD_LINES]
    dataset = IndexedDataset(tmp_path / "out_text_document")
    model = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    wanted = [model.encode(f"good {index}") for index in range(len(BAD_LINES))]
    assert [dataset[index].tolist() for index in range(len(dataset))] == wanted


def test_all_outputs_are_the_same_for_any_number_of_workers(small_blocks, tmp_path, model_file):
    mixed_file(tmp_path / "in.jsonl")
    found = []
    for workers in (1, 2):
        prefix = tmp_path / f"w{workers}" / "out"
        prefix.parent.mkdir()
        preprocess(
            PreprocessRequest(
                (str(tmp_path / "in.jsonl"),), str(prefix), "Llama2Tokenizer", str(model_file), workers=workers
            )
        )
        found.append(outputs(prefix))
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_several_packed_files_and_keys_give_a_dataset_per_key(tmp_path):
    first = [{"a": "1", "b": "2 2"}, {"a": "", "b": "3"}]
    second = [{"a": "4", "b": "5"}]
    content = ["".join(json.dumps(record) + "\n" for record in records).encode() for records in (first, second)]
    (tmp_path / "0.jsonl").write_bytes(content[0])
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(content[1]))
    request = PreprocessRequest(
        (f"{tmp_path}/*.jsonl*",),
        str(tmp_path / "out"),
        "NullTokenizer",
        vocab_size=9,
        rows=RowSettings(json_keys=("a", "b")),
    )
    manifests = preprocess(request)
    a, b = (IndexedDataset(tmp_path / f"out_{key}_document") for key in "ab")
    assert [row.tolist() for row in a] == [[1], [4]]
    assert [row.tolist() for row in b] == [[2, 2], [3], [5]]
    assert [(m.key, m.records.read, m.records.empty) for m in manifests] == [("a", 3, 1), ("b", 3, 0)]
    assert [(Path(entry.path).name, entry.records) for entry in manifests[0].inputs] == [
        ("0.jsonl", 2),
        ("1.jsonl.gz", 1),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_on_error_stop_names_the_first_bad_line_and_leaves_nothing(workers, small_blocks, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "1"}\n' * 100 + b"{\n" + b'{"text": "1"}\n' * 100 + b"[]\n")
    request = PreprocessRequest(
        (str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=9, workers=workers, stop_on_error=True
    )
    with pytest.raises(DataError, match=r"line 101 of .*in\.jsonl is bad: broken JSON"):
        preprocess(request)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65498, "uint16"), (65499, "int32"), (65535, "int32")])
def test_the_stored_type_follows_the_vocabulary_and_the_largest_id_survives(vocab_size, dtype, tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", [f"0 {vocab_size}"])
    request = PreprocessRequest((str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=vocab_size)
    manifest = preprocess(request)[0]
    assert (manifest.dtype, manifest.largest_id) == (dtype, vocab_size)
    dataset = IndexedDataset(tmp_path / "out_text_document")
    assert dataset.dtype == np.dtype(dtype)
    assert dataset[0].tolist() == [0, vocab_size]


def test_a_failed_overwrite_leaves_the_old_dataset(tmp_path):
    good, bad = write_jsonl(tmp_path / "good.jsonl", ["1 2"]), tmp_path / "bad.jsonl"
    bad.write_text('{"text": "3"}\n{')
    request = PreprocessRequest((str(good),), str(tmp_path / "out"), "NullTokenizer", vocab_size=9)
    preprocess(request)
    before = outputs(tmp_path / "out")
    again = PreprocessRequest(
        (str(bad),), str(tmp_path / "out"), "NullTokenizer", vocab_size=9, stop_on_error=True, overwrite=True
    )
    with pytest.raises(DataError):
        preprocess(again)
    assert outputs(tmp_path / "out") == before


@pytest.mark.parametrize("values", [{"workers": 0}, {"log_interval": 0}, {"rows": RowSettings(json_keys=("a", "a"))}])
def test_impossible_settings_are_refused(values: dict, tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", ["1"])
    with pytest.raises(DataError):
        preprocess(PreprocessRequest((str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=9, **values))
