"""Paths, splits, orders and blends make the right views, and every unusable dataset is refused before work starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_ext.data.datasets import DatasetRequest, Datasets, View, build_datasets
from megatron_ext.data.joined_view import JoinedView
from megatron_ext.data.order_file import write_order_file
from megatron_ext.data.preprocessing.preprocess import PreprocessRequest, preprocess
from megatron_ext.data.rows.settings import RowSettings
from megatron_ext.data.split import Span
from megatron_ext.data.store.indexed import IndexedDataset
from megatron_ext.data.store.manifest import manifest_path
from megatron_ext.data.views import WindowView
from megatron_ext.errors import DataError
from megatron_ext.tokenizer.null import NullTokenizer
from tests.unit.data.oracle import core_datasets, core_rows
from tests.unit.data.small import TOKENIZER, data_config, make_dataset, write_jsonl

SEQ = 16


def build(num_samples: tuple[int, int, int] = (100, 20, 20), seed: int = 1234, tokenizer=TOKENIZER, **data) -> Datasets:
    return build_datasets(DatasetRequest(data_config(**data), tokenizer, SEQ, num_samples, seed))


def rows(view: View, count: int, start: int = 0) -> np.ndarray:
    return np.stack([view[int(sample_id)] for sample_id in view.sample_ids(start, count)])


@pytest.mark.parametrize("order", ["permuted", "sequential", "megatron"])
def test_the_stream_is_a_pure_function_of_data_order_and_seed(order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    first, again = (build(data_path=(prefix,), dataset_order=order) for _ in range(2))
    moved = make_dataset(tmp_path, "copy_under_another_name")
    copy = build(data_path=(moved,), dataset_order=order)
    for name in ("train", "valid", "test"):
        whole = rows(getattr(first, name), 20)
        np.testing.assert_array_equal(rows(getattr(again, name), 7, 5), whole[5:12])
        np.testing.assert_array_equal(rows(getattr(copy, name), 20), whole)
    other = build(data_path=(prefix,), dataset_order=order, seed=1)
    assert (rows(other.train, 100) == rows(first.train, 100)).all() == (order == "sequential")


@pytest.mark.parametrize("order", ["permuted", "sequential"])
def test_the_split_comes_first_and_an_epoch_holds_every_window_once(order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path)
    store = IndexedDataset(prefix)
    datasets = build(data_path=(prefix,), dataset_order=order)
    for name, span in (("train", Span(0, 160)), ("valid", Span(160, 180)), ("test", Span(180, 200))):
        view, windows = getattr(datasets, name), WindowView(store, span, SEQ)
        expected = sorted(windows[index].tolist() for index in range(len(windows)))
        assert sorted(rows(view, len(view)).tolist()) == expected
        assert sorted(rows(view, len(view), len(view)).tolist()) == expected


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (lambda p: ([p[0]], None), (150, 20, 20)),
        (lambda p: (p, None), (100, 20, 20)),
        (lambda p: (p, [0.3, 0.2, 0.5]), (300, 30, 30)),
        (lambda p: (p[:1], [2.0]), (300, 30, 30)),
        (lambda p: (p[:2], [1.0, 9.0]), (2000, 10, 10)),
    ],
)
def test_megatron_mode_is_megatron_core_for_every_kind_of_blend(words, sizes, tmp_path: Path):
    prefixes = [make_dataset(tmp_path, f"d{index}", index, 150 + 100 * index) for index in range(3)]
    blend = words(prefixes)
    flags = blend[0] if blend[1] is None else [str(w) for pair in zip(blend[1], blend[0], strict=True) for w in pair]
    core = core_datasets(tmp_path, sizes, blend=blend, split="80,10,10")
    ours = build(sizes, data_path=tuple(flags), dataset_order="megatron")
    for wanted, view, size in zip(core, (ours.train, ours.valid, ours.test), sizes, strict=True):
        count = min(size, len(wanted))
        np.testing.assert_array_equal(rows(view, count), core_rows(wanted, count))


@pytest.mark.parametrize("weights", [None, [3.0, 1.0]])
def test_megatron_mode_with_paths_of_their_own_is_megatron_core(weights, tmp_path: Path):
    train = [make_dataset(tmp_path, f"t{index}", index) for index in range(2)]
    valid = [make_dataset(tmp_path, "v", 9)]
    flags = train if weights is None else [str(w) for pair in zip(weights, train, strict=True) for w in pair]
    core = core_datasets(tmp_path, (100, 20, 0), blend_per_split=[(train, weights), (valid, None), None])
    ours = build(train_data_path=tuple(flags), valid_data_path=tuple(valid), dataset_order="megatron")
    np.testing.assert_array_equal(rows(ours.train, 100), core_rows(core[0], 100))
    np.testing.assert_array_equal(rows(ours.valid, 20), core_rows(core[1], 20))
    assert ours.test is None


def test_blends_draw_by_weight_or_by_size(tmp_path: Path):
    prefixes = [make_dataset(tmp_path, f"d{index}", index, 100 * (index + 1)) for index in range(2)]
    stores = [IndexedDataset(prefix) for prefix in prefixes]
    owners = {
        tuple(WindowView(store, Span(0, int(len(store) * 0.8)), SEQ)[i]): index
        for index, store in enumerate(stores)
        for i in range(len(WindowView(store, Span(0, int(len(store) * 0.8)), SEQ)))
    }
    for words, share in ((("1", prefixes[0], "4", prefixes[1]), 0.8), (tuple(prefixes), 2 / 3)):
        view = build(data_path=words).train
        drawn = [owners[tuple(row)] for row in rows(view, 200)]
        assert abs(np.mean(drawn) - share) < 0.03


def test_an_epoch_of_a_blend_without_weights_holds_every_sample_once(tmp_path: Path):
    prefixes = tuple(make_dataset(tmp_path, name, seed, 50 * seed) for name, seed in (("a", 1), ("b", 2)))
    for order in ("permuted", "sequential"):
        view = build(data_path=prefixes, dataset_order=order).train
        for epoch in range(2):
            assert len(set(view.sample_ids(epoch * len(view), len(view)).tolist())) == len(view)


def test_a_schedule_moves_the_weights_of_the_training_part_alone(tmp_path: Path):
    prefixes = tuple(make_dataset(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2)))
    moving = build(data_path=prefixes, blend_schedule=("0:1,0", f"{400 * SEQ}:0,1"))
    sources = moving.train.sources_of(moving.train.sample_ids(0, 500))
    assert [round(float(part.mean()), 1) for part in np.split(sources, 5)] == [0.1, 0.4, 0.6, 0.9, 1.0]
    still = build(data_path=prefixes)
    np.testing.assert_array_equal(moving.valid.sample_ids(0, 99), still.valid.sample_ids(0, 99))


@pytest.mark.parametrize(
    ("words", "why"),
    [(("9", "a", "1", "b"), "both give weights"), (("a",), "several datasets"), (("a", "b", "a"), "2 weights")],
)
def test_a_schedule_that_does_not_fit_the_datasets_is_refused(words: tuple[str, ...], why: str, tmp_path: Path):
    made = {name: make_dataset(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2))}
    with pytest.raises(DataError, match=why):
        build(data_path=tuple(made.get(word, word) for word in words), blend_schedule=("0:9,1", "1e6:4,1"))


def test_an_order_file_orders_the_training_part_only(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    train = build(data_path=(prefix,)).train
    ids = np.arange(len(train))[::-1]
    write_order_file(tmp_path / "reverse", ids, train.target, {})
    datasets = build(data_path=(prefix,), dataset_order=str(tmp_path / "reverse"))
    assert datasets.train.sample_ids(0, 3).tolist() == [len(train) - 1, len(train) - 2, len(train) - 3]
    permuted = build(data_path=(prefix,))
    np.testing.assert_array_equal(datasets.valid.sample_ids(0, 9), permuted.valid.sample_ids(0, 9))
    with pytest.raises(DataError, match="made for other data"):
        build(data_path=(prefix,), split="70,20,10", dataset_order=str(tmp_path / "reverse"))
    with pytest.raises(DataError, match="number of datasets is 1"):
        build(data_path=(prefix, prefix), dataset_order=str(tmp_path / "reverse"))


@pytest.mark.parametrize("paths", [("data_path",), ("train_data_path", "valid_data_path", "test_data_path")])
def test_one_order_file_orders_several_datasets_and_leaves_validation_alone(paths: tuple[str, ...], tmp_path: Path):
    prefixes = tuple(make_dataset(tmp_path, name, seed, 90 * seed) for name, seed in (("a", 1), ("b", 2)))
    given = dict.fromkeys(paths, prefixes)
    share = 0.8 if paths == ("data_path",) else 1.0
    parts = [WindowView(store, Span(0, round(share * len(store))), SEQ) for store in map(IndexedDataset, prefixes)]
    joined = JoinedView(parts)
    order = np.random.default_rng(0).permutation(len(joined))
    write_order_file(tmp_path / "x.order", order, joined.target, {})
    datasets = build(**given, dataset_order=str(tmp_path / "x.order"))
    np.testing.assert_array_equal(datasets.train.sample_ids(0, len(order)), order)
    np.testing.assert_array_equal(rows(datasets.train, 50), [joined[i] for i in order[:50]])
    permuted = build(**given)
    for name in ("valid", "test"):
        ours, theirs = getattr(datasets, name), getattr(permuted, name)
        np.testing.assert_array_equal(ours.sample_ids(0, 200), theirs.sample_ids(0, 200))
        np.testing.assert_array_equal(rows(ours, 60), rows(theirs, 60))
    with pytest.raises(DataError, match="identity of dataset 1 of 2"):
        build(**(given | {paths[0]: prefixes[::-1]}), dataset_order=str(tmp_path / "x.order"))


def test_weights_beside_an_order_file_are_refused(tmp_path: Path):
    prefixes = [make_dataset(tmp_path, name, seed) for name, seed in (("a", 1), ("b", 2))]
    with pytest.raises(DataError, match=r"weights of datasets .*share of every dataset.*--stages"):
        build(data_path=("9", prefixes[0], "1", prefixes[1]), dataset_order=str(tmp_path / "x.order"))


@pytest.mark.parametrize("order", ["permuted", "sequential"])
def test_documents_as_samples_are_split_ordered_and_mixed_like_windows(order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path, count=50, largest_length=SEQ + 1)
    datasets = build(data_path=(prefix,), dataset_packing="documents", dataset_order=order)
    store = IndexedDataset(prefix)
    assert [len(view) for view in (datasets.train, datasets.valid, datasets.test)] == [40, 5, 5]
    wanted = [store[index].tolist() + [TOKENIZER.eod_id] * (SEQ + 1 - len(store[index])) for index in range(40)]
    found = rows(datasets.train, 40).tolist()
    assert sorted(found) == sorted(wanted) and (found == wanted) == (order == "sequential")
    mixture = build(data_path=("3", prefix, "1", prefix), dataset_packing="documents", dataset_order=order).train
    assert len(mixture) == 80 and mixture.has_loss_mask


def test_an_order_file_may_order_documents(tmp_path: Path):
    prefix = make_dataset(tmp_path, count=50, largest_length=SEQ + 1)
    target = build(data_path=(prefix,), dataset_packing="documents").train.target
    write_order_file(tmp_path / "reverse", np.arange(40)[::-1], target, {})
    train = build(data_path=(prefix,), dataset_packing="documents", dataset_order=str(tmp_path / "reverse")).train
    assert train.sample_ids(0, 3).tolist() == [39, 38, 37]
    with pytest.raises(DataError, match="made for other data"):
        build(data_path=(prefix,), dataset_order=str(tmp_path / "reverse"))


def test_the_tokenizers_pad_or_else_its_end_of_document_fills_samples(tmp_path: Path):
    prefix = make_dataset(tmp_path, count=50, largest_length=SEQ - 1)
    padding = NullTokenizer(1000)
    padding.pad_id = 4
    for tokenizer, pad in ((TOKENIZER, 1000), (padding, 4)):
        for data in ({"dataset_packing": "documents"}, {"pad_last_sample": True, "dataset_order": "sequential"}):
            view = build(data_path=(prefix,), tokenizer=tokenizer, **data).train
            sample = view[len(view) - 1]
            assert sample[-1] == pad, "neither the last window nor any document is full"
            assert view.loss_mask(len(view) - 1)[-1] == 0


def test_parts_that_are_not_wanted_are_not_built(tmp_path: Path):
    prefix = make_dataset(tmp_path)
    assert build((10, 0, 0), data_path=(prefix,)).valid is None
    assert build(data_path=(prefix,), split="1").test is None
    assert build(train_data_path=(prefix,)).valid is None


@pytest.mark.parametrize("split", ["100,0,0", "0,1,1", "999,1,0"])
@pytest.mark.parametrize("order", ["permuted", "megatron"])
def test_an_empty_part_is_refused_when_samples_are_wanted_of_it(split: str, order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path, count=20, largest_length=60)
    if split == "100,0,0":
        assert build(data_path=(prefix,), split=split, dataset_order=order).valid is None
        return
    with pytest.raises(DataError, match="--split"):
        build(data_path=(prefix,), split=split, dataset_order=order)


@pytest.mark.parametrize("order", ["permuted", "sequential", "megatron"])
def test_a_sequence_longer_than_the_data_is_refused_with_numbers(order: str, tmp_path: Path):
    prefix = make_dataset(tmp_path, count=3, largest_length=4)
    tokens = IndexedDataset(prefix).num_tokens
    with pytest.raises(DataError, match=f"{tokens} tokens.*--seq-length {SEQ} needs {SEQ + 1}"):
        build(data_path=(prefix,), split="1", dataset_order=order)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"data_path": ("p",), "train_data_path": ("p",)},
        {"valid_data_path": ("p",)},
        {"data_path": ("0.5", "p", "q")},
        {"data_path": ("nowhere/p",)},
    ],
)
def test_impossible_paths_are_refused(data: dict):
    with pytest.raises(DataError):
        build(**data)


@pytest.fixture
def preprocessed(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    path = write_jsonl(tmp_path / "in.jsonl", [" ".join(map(str, random.integers(0, 900, 40))) for _ in range(50)])
    preprocess(
        PreprocessRequest(
            (str(path),), str(tmp_path / "out"), "NullTokenizer", vocab_size=1000, rows=RowSettings(append_eod=True)
        )
    )
    return f"{tmp_path}/out_text_document"


def test_the_tokenizer_the_data_was_made_with_is_accepted(preprocessed: str):
    assert len(build(data_path=(preprocessed,)).train) > 0


def test_another_tokenizer_is_refused_with_both_fingerprints(preprocessed: str):
    other = NullTokenizer(2000)
    with pytest.raises(DataError, match=f"another tokenizer.*{TOKENIZER.fingerprint[:12]}.*{other.fingerprint[:12]}"):
        build(data_path=(preprocessed,), tokenizer=other)


def test_a_larger_id_than_the_vocabulary_is_refused(preprocessed: str):
    small = NullTokenizer(500)
    small.fingerprint = TOKENIZER.fingerprint
    with pytest.raises(DataError, match=r"token id 1000.*0 to 500"):
        build(data_path=(preprocessed,), tokenizer=small)


def test_data_without_a_manifest_is_used_with_one_warning_and_its_samples_are_checked(preprocessed: str, capsys):
    manifest_path(preprocessed).unlink()
    view = build(data_path=(preprocessed,), tokenizer=NullTokenizer(500)).train
    assert capsys.readouterr().err.count("has no manifest") == 1
    with pytest.raises(DataError, match="0 to 500"):
        rows(view, len(view))
