"""A checkpoint as full tensors: equal to the model's, written so that training loads it, refused when damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from megatron_ext.checkpoint.full import FullState, open_full, single_process, write_full
from megatron_ext.checkpoint.load import load_checkpoint
from megatron_ext.checkpoint.names import TRACKER, checkpoint_folder, replaced_folder
from megatron_ext.config.sections.parallel import ParallelConfig
from megatron_ext.errors import CheckpointError
from megatron_ext.model.logits import full_logits
from megatron_ext.parallel.world import World, start_world
from megatron_ext.platform.cpu import CpuPlatform
from tests.unit.checkpoint.saved import VARIANTS, components, save_filled, save_trained
from tests.unit.tiny import ARCHITECTURES, VOCAB_SIZE, tiny_run


def weights_of(architecture: str, **values: object) -> dict[str, torch.Tensor]:
    """Full weights of the initial model."""
    run = tiny_run(architecture, **values)
    with start_world(run, CpuPlatform()) as world:
        model = components(world, architecture=architecture, **values).models[0]
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_shapes_and_tensors_are_the_models(world: World, tmp_path: Path, architecture: str):
    parts, _ = save_trained(world, tmp_path, 1, architecture=architecture)
    parameters = dict(parts.models[0].named_parameters())
    full = open_full(tmp_path)
    assert full.names() == sorted(parameters)
    for name, parameter in parameters.items():
        assert full.shape(name) == tuple(parameter.shape)
        assert full.dtype(name) == parameter.dtype
        assert torch.equal(full.read(name), parameter)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_optimizer_and_precision_reads_the_same_way(world: World, tmp_path: Path, variant: str):
    parts, _ = save_trained(world, tmp_path, 1, **VARIANTS[variant])
    full = open_full(tmp_path)
    for name, parameter in parts.models[0].named_parameters():
        assert full.dtype(name) == parameter.dtype
        assert torch.equal(full.read(name), parameter)


def test_what_else_it_says(world: World, tmp_path: Path):
    parts, state = save_trained(world, tmp_path, 2)
    full = open_full(tmp_path)
    assert full.path == checkpoint_folder(tmp_path, 2)
    assert (full.run, full.vocab_size, full.iteration) == (parts.run, VOCAB_SIZE, 2)
    assert full.consumed_samples == state.consumed_samples == 8
    assert full.tokenizer_files == []


def test_which_checkpoint_is_opened(world: World, tmp_path: Path):
    parts = components(world)
    folders = {iteration: save_filled(parts, tmp_path, iteration, iteration) for iteration in (10, 20, 30)}
    assert open_full(tmp_path).path == folders[30]
    assert open_full(folders[10]).path == folders[10]
    (tmp_path / TRACKER).write_text("20\n")
    assert open_full(str(tmp_path)).path == folders[20]
    (tmp_path / TRACKER).unlink()
    assert open_full(tmp_path).path == folders[30]
    os.replace(folders[30], replaced_folder(tmp_path, 30))
    assert open_full(tmp_path).path == replaced_folder(tmp_path, 30)


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_checkpoint(tmp_path: Path, made: bool):
    if made:
        (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no checkpoint.*--save folder"):
        open_full(tmp_path / "empty")


def test_damage_to_any_file_is_refused_and_named(world: World, tmp_path: Path):
    folder = save_filled(components(world), tmp_path, 1, 1)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        for damage in (content[:-1], bytes([content[0] ^ 4]) + content[1:], b""):
            path.write_bytes(damage)
            with pytest.raises(CheckpointError, match=path.name):
                open_full(tmp_path)
        path.write_bytes(content)
    (folder / "added").write_bytes(b"")
    with pytest.raises(CheckpointError, match="added is not in the manifest"):
        open_full(folder)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_is_read_back_and_loads_into_training(tmp_path: Path, architecture: str):
    weights, run = weights_of(architecture, seed=7), tiny_run(architecture)
    model_file = tmp_path / "tokenizer.model"
    model_file.write_bytes(b"tokens")
    state = FullState(run, VOCAB_SIZE, weights.items(), [model_file], {"base": "a test"})
    folder = write_full(tmp_path / "out", state)
    full = open_full(tmp_path / "out")
    assert full.path == folder == checkpoint_folder(tmp_path / "out", 0)
    assert full.names() == sorted(weights)
    assert all(torch.equal(full.read(name), weight) for name, weight in weights.items())
    assert (full.iteration, full.consumed_samples, full.record.provenance) == (0, 0, {"base": "a test"})
    assert [file.read_bytes() for file in full.tokenizer_files] == [b"tokens"]
    with start_world(run, CpuPlatform()) as world:
        parts = components(world, architecture=architecture)
        load_checkpoint(folder, parts.run, VOCAB_SIZE, parts.models, None)
        loaded = dict(parts.models[0].named_parameters())
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("extra", [-3, 0, 5])
def test_the_number_of_padding_rows_written_does_not_matter(tmp_path: Path, extra: int):
    """An imported matrix has the true vocabulary; training pads it to its own size."""
    rows = max(VOCAB_SIZE, VOCAB_SIZE + extra)
    vocabulary = ("embedding.word_embeddings.weight", "output_layer.weight")
    weights = {name: w[:rows] if name in vocabulary else w for name, w in weights_of("llama").items()}
    folder = write_full(tmp_path, FullState(tiny_run(), VOCAB_SIZE, weights.items()))
    with start_world(tiny_run(), CpuPlatform()) as world:
        parts = components(world, seed=5)
        load_checkpoint(folder, parts.run, VOCAB_SIZE, parts.models, None)
        for name, parameter in parts.models[0].named_parameters():
            cut = VOCAB_SIZE if name in vocabulary else None
            assert torch.equal(parameter[:cut], weights[name][:cut])


def test_logits_are_the_training_models(tmp_path: Path):
    weights, run = weights_of("llama", seed=3), tiny_run()
    write_full(tmp_path, FullState(run, VOCAB_SIZE, weights.items()))
    full = open_full(tmp_path)
    tokens = torch.arange(32).view(2, 16)
    logits = full_logits(full.run, full.vocab_size, full.read, tokens)
    assert logits.shape == (2, 16, VOCAB_SIZE)
    with start_world(run, CpuPlatform()) as world:
        model = components(world, seed=3).models[0].eval()
        positions = torch.arange(16).expand(2, 16)
        expected = model(tokens, positions, None)[..., :VOCAB_SIZE]
    assert torch.equal(logits, expected)


def test_the_single_process_layout_keeps_the_model():
    layout = {
        "tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "context_parallel_size": 2,
        "sequence_parallel": True, "pipeline_model_parallel_layout": "Et|tL", "use_distributed_optimizer": True,
        "num_distributed_optimizer_instances": 2, "distributed_backend": "nccl", "device": "cuda", "num_threads": 3,
    }  # fmt: skip
    run = tiny_run().with_values(world_size=32, bf16=True, **layout)
    single = single_process(run)
    assert (single.world_size, single.data_parallel_size, single.parallel.model_parallel_size) == (1, 1, 1)
    assert single.parallel == ParallelConfig(device="cpu", num_threads=3)
    assert single.model == run.model
    assert single.train == run.train
