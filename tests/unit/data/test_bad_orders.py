"""Orders and the data behind them, changed after the fact: refused with numbers before training, never a crash."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from megatron_ext.data import order_file
from megatron_ext.data.curriculum.score_file import ScoreFile, write_scores
from megatron_ext.data.datasets import DatasetRequest, Datasets, build_datasets
from megatron_ext.data.order import SequentialOrder
from megatron_ext.data.order_file import FileOrder, OrderFileWriter, OrderTarget, write_order_file
from megatron_ext.data.split import Span
from megatron_ext.data.store import indexed
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.indexed_writer import write_indexed
from megatron_ext.data.store.manifest import manifest_path
from megatron_ext.data.views import View, WindowView
from megatron_ext.errors import DataError
from megatron_ext.training.resume import describe_order
from tests.unit.data.described import Record, write_run
from tests.unit.data.small import TOKENIZER, data_config, make_dataset, random_documents

SEQ = 8
SMALL = OrderTarget("data", 0, 80, 16, 5)


def build(seq_length: int = SEQ, **data: Any) -> Datasets:
    return build_datasets(DatasetRequest(data_config(**data), TOKENIZER, seq_length, (50, 0, 0), 1))


def train(prefix: str, **data: Any) -> View:
    view = build(data_path=(prefix,), **data).train
    assert view is not None
    return view


def rewrite(prefix: str, change: Callable[[np.ndarray], object]) -> None:
    """Take the documents, change their tokens, and write them under the same prefix, of the same sizes."""
    store = IndexedDataset(prefix)
    documents = [store[index].copy() for index in range(len(store))]
    tokens = np.concatenate(documents)
    change(tokens)
    cuts = np.cumsum([len(document) for document in documents])[:-1]
    write_indexed(prefix, np.split(tokens, cuts), np.uint16)


# the run has other data than the order file -------------------------------------------------------------------------


@pytest.fixture
def ordered(tmp_path: Path) -> tuple[str, str]:
    """A dataset and an order file for its training part."""
    prefix = make_dataset(tmp_path)
    view = train(prefix)
    path = tmp_path / "reverse.order"
    with OrderFileWriter(path, len(view), view.target, {}, "permutation") as writer:
        writer.append(np.arange(len(view))[::-1])
        writer.publish()
    return prefix, str(path)


def test_a_run_that_fits_takes_the_order(ordered: tuple[str, str]):
    prefix, path = ordered
    view = train(prefix, dataset_order=path)
    assert view.sample_ids(0, 3).tolist() == [len(view) - 1, len(view) - 2, len(view) - 3]


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        ({"split": "70,20,10"}, "last_sequence is 160.*This run's is 140"),
        ({"seq_length": 9}, "seq_length is 8.*This run's is 9"),
        ({"pad_last_sample": True}, "num_samples is"),
        ({"dataset_packing": "documents", "seq_length": 40}, "seq_length is 8.*This run's is 40"),
    ],
)
def test_a_run_of_another_split_or_shape_is_refused(ordered: tuple[str, str], difference: dict, said: str):
    prefix, path = ordered
    with pytest.raises(DataError, match=f"made for other data: its {said}"):
        build(data_path=(prefix,), dataset_order=path, **difference)


def test_a_run_of_other_data_is_refused(ordered: tuple[str, str], tmp_path: Path):
    with pytest.raises(DataError, match=r"made for other data: its dataset is ends-\w+.*This run's is ends-\w+"):
        train(make_dataset(tmp_path, "other", seed=1), dataset_order=ordered[1])


# the data changes under its name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, -1])
def test_data_rewritten_under_its_prefix_is_refused_by_order_and_scores(place: int, tmp_path: Path, monkeypatch):
    """Of the same sizes, without a manifest, one token another at either end of much data."""
    monkeypatch.setattr(indexed, "_IDENTITY_BYTES", 16)
    prefix, path = make_dataset(tmp_path), str(tmp_path / "x.order")
    write_order_file(Path(path), [0], train(prefix).target, {})
    write_scores(prefix, "x", [np.zeros(200, np.float32)], {})
    before = IndexedDataset(prefix).identity

    def change(tokens: np.ndarray) -> None:
        tokens[place] ^= 1

    rewrite(prefix, change)
    assert IndexedDataset(prefix).identity != before
    with pytest.raises(DataError, match="made for other data: its dataset is"):
        train(prefix, dataset_order=path)
    with pytest.raises(DataError, match="made for other data: its dataset is"):
        ScoreFile(prefix, "x")


@pytest.mark.parametrize("order", ["sequential", "permuted", "megatron"])
def test_data_rewritten_after_a_checkpoint_differs_where_a_resume_looks(order: str, tmp_path: Path):
    """A token in the middle of the data, far behind the samples that are compared."""
    documents = [document.tolist() for document in random_documents(0, 300)]
    described = []
    for change in (0, 0, 1):
        documents[150] = [3, 4, 5 + change]
        prefix = write_run(tmp_path / "data", [Record("a", document) for document in documents])
        described.append(describe_order(train(prefix, dataset_order=order), 8))
    assert described[0] == described[1] != described[2]
    assert described[0]["tokens"] == described[2]["tokens"]


def test_a_view_reads_on_from_the_files_it_opened_when_others_take_their_names(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    store = IndexedDataset(prefix)
    view = WindowView(store, Span(0, 200), SEQ).ordered_by(SequentialOrder(10))
    wanted, identity = view.read(np.arange(10))[0].copy(), store.identity
    rewrite(prefix, lambda tokens: np.bitwise_xor(tokens, 1, out=tokens))
    np.testing.assert_array_equal(view.read(np.arange(10))[0], wanted)
    assert store.identity == identity != IndexedDataset(prefix).identity
    for file in tmp_path.iterdir():
        file.unlink()
    np.testing.assert_array_equal(view.read(np.arange(10))[0], wanted)


@pytest.mark.parametrize("order", ["sequential", "permuted", "megatron"])
def test_samples_and_views_outlive_their_dataset(order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    datasets = build(data_path=(prefix,), dataset_order=order)
    view = datasets.train
    assert view is not None
    gone = weakref.ref(datasets)
    rows, wanted = view.read(view.sample_ids(0, 4))[0], view.read(view.sample_ids(0, 4))[0].copy()
    tokens = view.token_ranges(0)[0].store.tokens
    copy = tokens.copy()
    del datasets
    for file in tmp_path.iterdir():
        file.unlink()
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(view.read(view.sample_ids(0, 4))[0], wanted)
    del view
    gc.collect()
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(tokens, copy)


# the order file changes while it is in use --------------------------------------------------------------------------


@pytest.fixture
def opened(tmp_path: Path) -> tuple[Path, FileOrder]:
    path = tmp_path / "x.order"
    write_order_file(path, [4, 2, 0, 1, 3], SMALL, {})
    os.utime(path, ns=(0, 10**9))  # a clock may tick less often than a file is written
    return path, FileOrder(path, SMALL)


def test_another_file_under_its_name_does_not_change_an_open_order(opened: tuple[Path, FileOrder]):
    path, order = opened
    write_order_file(path, [0, 0, 0], SMALL, {})
    assert order.sample_ids(0, 12).tolist() == [4, 2, 0, 1, 3, 4, 2, 0, 1, 3, 4, 2]
    path.unlink()
    assert order.sample_ids(4, 2).tolist() == [3, 4]


def test_a_touched_file_is_read_again_once_and_goes_on(opened: tuple[Path, FileOrder]):
    path, order = opened
    path.touch()
    with mock.patch.object(order_file, "_sha256", side_effect=order_file._sha256) as read_whole:
        assert order.sample_ids(0, 5).tolist() == [4, 2, 0, 1, 3]
        assert order.sample_ids(3, 3).tolist() == [1, 3, 4]
    assert read_whole.call_count == 1


@pytest.mark.parametrize("size", [0, 64, -8, -1])
def test_a_file_cut_in_place_is_an_error_and_no_bus_error(opened: tuple[Path, FileOrder], size: int):
    path, order = opened
    whole = path.stat().st_size
    os.truncate(path, size if size >= 0 else whole + size)
    for start in (0, 4):
        with pytest.raises(DataError, match=f"changed while it was in use.*{whole} bytes when it was opened"):
            order.sample_ids(start, 1)


def test_a_file_changed_in_place_is_an_error(opened: tuple[Path, FileOrder]):
    path, order = opened
    with path.open("r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\x01")
    with pytest.raises(DataError, match="changed while it was in use"):
        order.sample_ids(0, 1)


# headers whose checksums fit ----------------------------------------------------------------------------------------

ODD = [None, True, False, 0, 1, -1, 6, 2**31, 2**63, 2**64, 10**400, 1.5, 1e400, "", "x", "5", [], [5], {}, {"a": 1}]


def sealed(header: dict[str, Any], ids: bytes) -> bytes:
    content = {name: value for name, value in header.items() if name != "header_sha256"}
    own = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    line = json.dumps({**content, "header_sha256": own}).encode()
    return line + b" " * (-(len(line) + 1) % 64) + b"\n" + ids


def test_odd_values_under_a_checksum_that_fits_are_refused_or_change_nothing(tmp_path: Path):
    path = tmp_path / "x"
    write_order_file(path, [4, 2, 0, 1, 3], SMALL, {"by": "a test"})
    line, ids = path.read_bytes().split(b"\n", 1)
    header, refused = json.loads(line), 0
    fields = [(name,) for name in header] + [("target", name) for name in header["target"]] + [("permutation",)]
    for field in fields:
        for value in ODD:
            changed = json.loads(line)
            (changed if len(field) == 1 else changed["target"])[field[-1]] = value
            path.write_bytes(sealed(changed, ids))
            try:
                order = FileOrder(path, SMALL)
            except DataError:
                refused += 1
                continue
            assert order.sample_ids(0, 5).tolist() == [4, 2, 0, 1, 3], (field, value)
            assert changed == header or field[0] in ("dtype", "made_by", "permutation", "header_sha256")
    assert refused > 200


def test_headers_nested_deeply_are_refused(tmp_path: Path):
    """Also so deeply that they can just be read, but not written again for their checksum."""
    path, limit = tmp_path / "x", sys.getrecursionlimit()
    write_order_file(path, [4, 2], SMALL, {"deep": 0})
    good = path.read_bytes()
    for depth in (100, *range(limit - 200, limit), 100_000):
        path.write_bytes(good.replace(b'"deep": 0', b'"deep": ' + b"[" * depth + b"]" * depth))
        with pytest.raises(DataError, match=r"damaged|not an order file"):
            FileOrder(path, SMALL)


# mixtures that cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (("-1", "2"), "'-1' stands where a weight belongs"),
        (("1", "-0.5"), "'-0.5' stands where a weight belongs"),
        (("0", "0"), "'0' stands where a weight belongs"),
        (("1", "nan"), "'nan' stands where a weight belongs"),
        (("inf", "1"), "'inf' stands where a weight belongs"),
    ],
)
@pytest.mark.parametrize("order", ["permuted", "megatron"])
def test_weights_that_are_none_are_refused(weights: tuple[str, str], said: str, order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    with pytest.raises(DataError, match=f"--data-path.*{said}.*A weight is a number above 0"):
        build(data_path=(weights[0], prefix, weights[1], prefix), dataset_order=order)


@pytest.mark.parametrize("order", ["permuted", "megatron"])
def test_weights_too_large_or_too_small_to_add_are_refused_or_mixed(order: str, tmp_path: Path):
    """Sums that overflow, and shares that are nothing beside the others, give a stream or an error, never NaN."""
    prefix = make_dataset(tmp_path)
    with pytest.raises(DataError, match="too large to add"):
        build(data_path=("1e308", prefix, "1e308", prefix), dataset_order=order)
    for weights, of_the_first in ((("5e-324", "5e-324"), (10,)), (("1e-300", "1e300"), (0, 1))):
        view = build(data_path=(weights[0], prefix, weights[1], prefix), dataset_order=order).train
        assert view is not None and len(view.read(view.sample_ids(0, 20))[0]) == 20
        assert np.count_nonzero(view.sources_of(view.sample_ids(0, 20)) == 0) in of_the_first


def test_a_missing_dataset_of_a_blend_is_named(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    for words in ((prefix, f"{tmp_path}/absent"), ("1", f"{tmp_path}/absent", "2", prefix)):
        with pytest.raises(DataError, match=r"absent\.idx cannot be read"):
            build(data_path=words)


def test_a_manifest_that_appears_makes_it_other_data(ordered: tuple[str, str], tmp_path: Path):
    prefix, path = ordered
    documents = [document.tolist() for document in random_documents(0, 200)]
    other = write_run(tmp_path / "whole", [Record("a", document) for document in documents], with_mask=False)
    for suffix in (".bin", ".idx"):
        os.replace(other + suffix, prefix + suffix)
    os.replace(manifest_path(other), manifest_path(prefix))
    with pytest.raises(DataError, match="made for other data: its dataset is ends-"):
        train(prefix, dataset_order=path)
