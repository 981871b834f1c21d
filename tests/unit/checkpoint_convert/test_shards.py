"""Shards: what the streamed writer writes, the safetensors library reads; only files of the folder are opened."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from checkpoint_convert.shards import INDEX, SINGLE, HfFolder, parse_bytes, plan_shards, write_shards
from megatron_ext.errors import ConversionError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.randn(5, generator=torch.Generator().manual_seed(0)),
    "c": torch.randn(7, 4, generator=torch.Generator().manual_seed(1)).T,  # not contiguous
    "d": torch.ones(1),
}


def layout(tensors):
    return [(name, tuple(tensor.shape)) for name, tensor in tensors.items()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("limit", [1, 30, 60, 10**6])
def test_the_library_reads_back_every_bit(tmp_path, dtype, limit):
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in TENSORS.items()}
    shards = plan_shards(layout(tensors), dtype, limit)
    total = write_shards(tmp_path, shards, dtype, tensors.items())
    assert total == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    read = {}
    for shard in shards:
        read |= load_file(tmp_path / shard.file)
        with safe_open(tmp_path / shard.file, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    folder = HfFolder(tmp_path)
    assert sorted(folder.names()) == sorted(tensors)
    assert all(torch.equal(folder.read(name), tensors[name]) for name in tensors)
    assert all(tuple(folder.shape(name)) == tuple(tensors[name].shape) for name in tensors)
    assert {folder.dtype(name) for name in tensors} == {getattr(torch, dtype)}


def test_a_file_holds_at_most_the_limit_unless_one_tensor_is_larger():
    shapes = [("a", (10,)), ("b", (10,)), ("c", (100,)), ("d", (1,)), ("e", (1,))]
    files = [[name for name, _ in shard.tensors] for shard in plan_shards(shapes, "float32", 80)]
    assert files == [["a", "b"], ["c"], ["d", "e"]]
    assert [s.file for s in plan_shards(shapes, "float32", 80)][1] == "model-00002-of-00003.safetensors"
    assert [s.file for s in plan_shards(shapes, "float32", 10**6)] == [SINGLE]


def test_the_index_names_the_file_of_every_tensor(tmp_path):
    shards = plan_shards(layout(TENSORS), "float32", 30)
    write_shards(tmp_path, shards, "float32", TENSORS.items())
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in TENSORS.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)
    assert not (tmp_path / SINGLE).exists()


def test_a_stream_that_does_not_follow_the_plan_is_our_own_error(tmp_path):
    shards = plan_shards(layout(TENSORS), "float32", 10**6)
    with pytest.raises(AssertionError):
        write_shards(tmp_path, shards, "float32", reversed(TENSORS.items()))


@pytest.mark.parametrize(
    ("text", "number"), [("5GB", 5 * 10**9), ("200MiB", 200 * 2**20), ("7", 7), ("1 kb", 1000), ("3gib", 3 * 2**30)]
)
def test_sizes_are_read_with_units(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "5TBB", "-1", "0", "0MB", "1.5GB"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ConversionError, match="--max-shard-size"):
        parse_bytes(text)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", 7, "a\\b"])
def test_an_index_can_only_name_files_of_its_own_folder(tmp_path, name):
    save_file(TENSORS | {"c": TENSORS["c"].contiguous()}, tmp_path / "outside.safetensors")
    root = tmp_path / "model"
    root.mkdir()
    (root / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConversionError, match="inside its own folder"):
        HfFolder(root)


def test_pickled_weights_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ConversionError, match="can run code"):
        HfFolder(tmp_path)


def test_missing_damaged_and_doubled_files_are_named(tmp_path):
    with pytest.raises(ConversionError, match=r"holds no model\.safetensors"):
        HfFolder(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(ConversionError, match=r"x\.safetensors named in .* but not there"):
        HfFolder(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ConversionError, match=r"x\.safetensors cannot be read"):
        HfFolder(tmp_path)
    save_file({"a": TENSORS["a"]}, tmp_path / "x.safetensors")
    save_file({"a": TENSORS["a"]}, tmp_path / "y.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}))
    with pytest.raises(ConversionError, match=r"a is in x\.safetensors and in y\.safetensors"):
        HfFolder(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(ConversionError, match="is no index"):
        HfFolder(tmp_path)


def test_an_element_type_without_a_counterpart_is_refused(tmp_path):
    save_file({"a": torch.zeros(2, dtype=torch.int64)}, tmp_path / SINGLE)
    with pytest.raises(ConversionError, match="type I64"):
        HfFolder(tmp_path).dtype("a")
