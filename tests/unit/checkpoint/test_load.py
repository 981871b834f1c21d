"""Loading: the newest whole checkpoint or a clear error, never a damaged one, never another model's."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from megatron_ext.checkpoint.load import find_checkpoint, load_checkpoint, verify_together
from megatron_ext.checkpoint.manifest import MANIFEST
from megatron_ext.checkpoint.names import TRACKER, checkpoint_folder, replaced_folder, write_tracker
from megatron_ext.config import CheckpointConfig
from megatron_ext.errors import CheckpointError
from megatron_ext.parallel.world import World
from tests.unit.checkpoint.saved import assert_same, components, save_filled, save_trained, state_of
from tests.unit.tiny import VOCAB_SIZE


@pytest.fixture
def root(world: World, tmp_path: Path) -> Path:
    """A --save folder with the checkpoints 10, 20 and 30."""
    parts = components(world)
    for iteration in (10, 20, 30):
        save_filled(parts, tmp_path / "run", iteration, iteration)
    return tmp_path / "run"


def find(root: Path, **values: object) -> Path | None:
    return find_checkpoint(CheckpointConfig(load=str(root), **values))


def damages(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Kinds of damage to a file, with its new content."""
    content, chance = path.read_bytes(), random.Random(path.name)
    for number in range(8):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield f"flip {number}", bytes(flipped)
    page = bytearray(content)
    middle = len(content) // 2
    page[middle : middle + 512] = bytes(len(page[middle : middle + 512]))
    if bytes(page) != content:
        yield "zeroed", bytes(page)
    yield "truncated", content[: chance.randrange(len(content))]
    yield "longer", content + b"\n"
    yield "emptied", b""
    yield "deleted", None


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_every_damage_to_every_file_is_found_and_named(world: World, tmp_path: Path):
    model = tmp_path / "tokenizer.model"
    model.write_bytes(bytes(range(256)) * 8)
    folder = save_with_tokenizer(world, tmp_path / "run", model)
    assert len(files(folder)) == 7
    assert not verify_together(folder)
    for path in files(folder):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        for kind, damage in damages(path):
            path.unlink() if damage is None else path.write_bytes(damage)
            faults = verify_together(folder)
            assert faults, (name, kind)
            # a damaged manifest may speak of any file; every other file is named itself
            assert name == MANIFEST or any(fault.startswith(name) for fault in faults), (name, kind, faults)
            path.write_bytes(content)
    assert not verify_together(folder)


def save_with_tokenizer(world: World, root: Path, model: Path) -> Path:
    from megatron_ext.checkpoint.record import CheckpointRecord
    from megatron_ext.checkpoint.save import save_checkpoint, training_tensors

    parts = components(world)
    state = {"iteration": 1, "consumed_samples": 4, "consumed_tokens": 64}
    record = CheckpointRecord(parts.run, VOCAB_SIZE, state, optimizer_step=1, tokenizer_files=[model.name])
    return save_checkpoint(root, training_tensors(parts.models, parts.optimizer, False), record, [model])


def test_files_of_two_checkpoints_that_changed_places_are_found(root: Path):
    for name in ("__0_0.distcp", "state.json"):
        one, other = checkpoint_folder(root, 10) / name, checkpoint_folder(root, 20) / name
        contents = one.read_bytes(), other.read_bytes()
        one.write_bytes(contents[1]), other.write_bytes(contents[0])
        for folder in (one.parent, other.parent):
            assert [fault.split()[0] for fault in verify_together(folder)] == [name]
        one.write_bytes(contents[0]), other.write_bytes(contents[1])


@pytest.mark.parametrize("name", ["__1_0.distcp", "tokenizer/evil.model", ".hidden"])
def test_an_added_file_is_found(root: Path, name: str):
    added = checkpoint_folder(root, 30) / name
    added.parent.mkdir(exist_ok=True)
    added.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"iter_0000030 is damaged: {name} is not in the manifest"):
        find(root)


def damage(root: Path, *iterations: int) -> None:
    for iteration in iterations:
        path = checkpoint_folder(root, iteration) / "__0_0.distcp"
        path.write_bytes(path.read_bytes()[:-1])


def test_the_newest_is_taken(root: Path):
    assert find(root) == checkpoint_folder(root, 30)


def test_the_tracker_says_which_is_the_newest(root: Path):
    write_tracker(root, 20)
    assert find(root) == checkpoint_folder(root, 20)


def test_without_tracker_the_highest_number_is_the_newest(root: Path):
    (root / TRACKER).unlink()
    assert find(root) == checkpoint_folder(root, 30)


def test_a_damaged_newest_one_is_an_error_that_names_the_damage_and_the_others(root: Path):
    damage(root, 30)
    with pytest.raises(CheckpointError) as failure:
        find(root)
    message = str(failure.value)
    assert "iter_0000030 is damaged: __0_0.distcp has" in message
    assert "[10, 20]" in message
    assert "--allow-older-checkpoint or --ckpt-step" in message
    assert "\n" not in message


def test_allow_older_checkpoint_takes_the_newest_whole_one(root: Path, capsys: pytest.CaptureFixture[str]):
    damage(root, 30)
    assert find(root, allow_older_checkpoint=True) == checkpoint_folder(root, 20)
    warned = capsys.readouterr()
    assert "iter_0000030 is damaged: __0_0.distcp" in warned.out + warned.err
    damage(root, 20)
    assert find(root, allow_older_checkpoint=True) == checkpoint_folder(root, 10)
    damage(root, 10)
    with pytest.raises(CheckpointError, match=r"iter_0000010 is damaged.*older checkpoints: none"):
        find(root, allow_older_checkpoint=True)


def test_ckpt_step_takes_that_one_and_no_other(root: Path):
    assert find(root, ckpt_step=10) == checkpoint_folder(root, 10)
    with pytest.raises(CheckpointError, match=r"--ckpt-step 15 is not in .*\[10, 20, 30\]"):
        find(root, ckpt_step=15)
    damage(root, 20)
    with pytest.raises(CheckpointError, match="iter_0000020 is damaged"):
        find(root, ckpt_step=20)
    with pytest.raises(CheckpointError, match="iter_0000020 is damaged"):
        find(root, ckpt_step=20, allow_older_checkpoint=True)


def test_ckpt_step_helps_where_the_tracker_is_garbage(root: Path):
    (root / TRACKER).write_text("garbage")
    with pytest.raises(CheckpointError, match="--ckpt-step"):
        find(root)
    assert find(root, ckpt_step=20) == checkpoint_folder(root, 20)


def test_a_tracker_that_points_to_nothing(root: Path):
    shutil.rmtree(checkpoint_folder(root, 30))
    with pytest.raises(CheckpointError, match=r"iter_0000030 is damaged.*not a finished checkpoint.*\[10, 20\]"):
        find(root)
    assert find(root, allow_older_checkpoint=True) == checkpoint_folder(root, 20)


def test_a_kill_while_a_checkpoint_was_replaced_loses_nothing(root: Path):
    os.replace(checkpoint_folder(root, 30), replaced_folder(root, 30))
    assert find(root) == replaced_folder(root, 30)
    assert find(root, ckpt_step=30) == replaced_folder(root, 30)


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_there_starts_from_the_beginning_unless_it_was_asked_for(world: World, tmp_path: Path, exists: bool):
    if exists:
        (tmp_path / "empty").mkdir()
    assert find(tmp_path / "empty") is None
    with pytest.raises(CheckpointError, match="empty holds no checkpoint"):
        find(tmp_path / "empty", exit_on_missing_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"--ckpt-step 5 is not in .*it holds none"):
        find(tmp_path / "empty", ckpt_step=5)


OTHER_MODELS = {
    "num_layers 2 there, 3 here": {"num_layers": 3},
    "hidden_size 32 there, 64 here": {"hidden_size": 64},
    "num_attention_heads 4 there, 2 here": {"num_attention_heads": 2},
    "head_dim 8 there, 16 here": {"kv_channels": 16},
    "ffn_size 48 there, 64 here": {"ffn_hidden_size": 64},
    "query_groups 4 there, 2 here": {"num_query_groups": 2},
    "swiglu True there, False here": {"swiglu": False},
    "normalization RMSNorm there, LayerNorm here": {"normalization": "LayerNorm"},
    "position_embedding_type rope there, alibi here": {"position_embedding_type": "alibi"},
    "rotary_base 10000.0 there, 500000.0 here": {"rotary_base": 500000},
    "untie_embeddings_and_output_weights True there, False here": {"untie_embeddings_and_output_weights": False},
    "add_bias_linear False there, True here": {"add_bias_linear": True},
    "add_qkv_bias False there, True here": {"add_qkv_bias": True},
    "layernorm_epsilon 1e-05 there, 1e-06 here": {"layernorm_epsilon": 1e-6},
    "rotary_interleaved False there, True here": {"rotary_interleaved": True},
    "rope_scaling None there, RopeScaling(kind='ntk', factor=3.0": {
        "rope_scaling_type": "ntk",
        "rope_scaling_factor": 3,
    },
    "add_attention_output_bias False there, True here": {"add_attention_output_bias": True},
    "add_mlp_up_bias False there, True here": {"add_mlp_up_bias": True},
    "add_mlp_down_bias False there, True here": {"add_mlp_down_bias": True},
    "embedding_layernorm False there, True here": {"embedding_layernorm": True},
    "parallel_residual False there, True here": {"parallel_residual": True},
    "localized_filtering False there, True here": {"localized_filtering": True},
    "add_output_layer_bias False there, True here": {"add_output_layer_bias": True},
    "openai_gelu False there, True here": {"openai_gelu": True},
}


@pytest.mark.parametrize("difference", OTHER_MODELS)
def test_another_model_is_refused_by_the_name_of_the_setting(world: World, tmp_path: Path, difference: str):
    folder = save_filled(components(world), tmp_path, 1, 1)
    other = components(world, **OTHER_MODELS[difference])
    before = state_of(other)
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(folder, other.run, VOCAB_SIZE, other.models, other.optimizer)
    assert f"{folder} holds another model" in str(failure.value)
    assert difference in str(failure.value)
    assert_same(state_of(other), before)


def test_finetune_may_stretch_the_positions(world: World, tmp_path: Path):
    """A long-context stage: the same tensors, other frequencies."""
    folder = save_filled(components(world), tmp_path, 1, 1)
    for finetune in (True, False):
        other = components(world, finetune=finetune, rotary_base=5e5)
        with nullcontext() if finetune else pytest.raises(CheckpointError, match="rotary_base"):
            load_checkpoint(folder, other.run, VOCAB_SIZE, other.models, None)


def test_every_difference_is_named_at_once(world: World, tmp_path: Path):
    folder = save_filled(components(world), tmp_path, 1, 1)
    other = components(world, num_layers=3, hidden_size=64, swiglu=False)
    with pytest.raises(CheckpointError) as failure:
        load_checkpoint(folder, other.run, VOCAB_SIZE + 1, other.models, None)
    for setting in ("num_layers", "hidden_size", "swiglu", "head_dim", f"vocabulary {VOCAB_SIZE} there"):
        assert setting in str(failure.value)
    assert "num_attention_heads" not in str(failure.value)


def test_another_number_of_learned_positions_is_refused_by_name(world: World, tmp_path: Path):
    folder = save_filled(components(world, architecture="megatron_default"), tmp_path, 1, 1)
    other = components(world, architecture="megatron_default", max_position_embeddings=32)
    with pytest.raises(CheckpointError, match="max_position_embeddings 16 there, 32 here"):
        load_checkpoint(folder, other.run, VOCAB_SIZE, other.models, None)


def test_another_padding_of_the_vocabulary_is_the_same_model(world: World, tmp_path: Path):
    for number, architecture in enumerate(("llama", "megatron_default", "output_bias_tied")):
        for precision in ({}, {"bf16": True}, {"use_distributed_optimizer": True}):
            root = tmp_path / f"{number}{len(precision)}{'bf16' in precision}"
            shape = {"architecture": architecture, **precision}
            parts, _ = save_trained(world, root, 1, make_vocab_size_divisible_by=8, **shape)
            other = components(world, make_vocab_size_divisible_by=64, **shape)
            load_checkpoint(checkpoint_folder(root, 1), other.run, VOCAB_SIZE, other.models, other.optimizer)
            saved, loaded = state_of(parts), state_of(other)
            for name, tensor in saved.items():
                cut = VOCAB_SIZE if tensor.dim() and tensor.shape[0] > VOCAB_SIZE else None
                assert (loaded[name][:cut] == tensor[:cut]).all(), name


def test_a_checkpoint_without_optimizer_says_so(world: World, tmp_path: Path):
    save_trained(world, tmp_path, 1, no_save_optim=True)
    other = components(world)
    with pytest.raises(CheckpointError, match=r"saved without optimizer state.*--finetune.*--no-load-optim"):
        load_checkpoint(checkpoint_folder(tmp_path, 1), other.run, VOCAB_SIZE, other.models, other.optimizer)
    load_checkpoint(checkpoint_folder(tmp_path, 1), other.run, VOCAB_SIZE, other.models, None)


@pytest.mark.parametrize(
    ("saved", "loaded", "difference"),
    [
        ({}, {"bf16": True}, "fp32 there, --bf16 here"),
        # silently, the rounded weights would take the place of the exact ones
        ({"bf16": True}, {}, "--bf16 there, fp32 here"),
        ({"fp16": True}, {"bf16": True}, "--fp16 there, --bf16 here"),
        ({}, {"optimizer": "sgd"}, "adam there, sgd here"),
    ],
)
def test_another_precision_or_optimizer_is_one_clear_error(
    world: World, tmp_path: Path, saved: dict, loaded: dict, difference: str
):
    save_trained(world, tmp_path, 1, **saved)
    other = components(world, **loaded)
    with pytest.raises(CheckpointError, match=f"{difference}.*--no-load-optim"):
        load_checkpoint(checkpoint_folder(tmp_path, 1), other.run, VOCAB_SIZE, other.models, other.optimizer)


def test_weights_can_be_taken_into_another_precision(world: World, tmp_path: Path):
    parts, _ = save_trained(world, tmp_path, 1)
    other = components(world, bf16=True)
    load_checkpoint(checkpoint_folder(tmp_path, 1), other.run, VOCAB_SIZE, other.models, None)
    for found, saved in zip(other.models[0].parameters(), parts.models[0].parameters(), strict=True):
        assert (found == saved.bfloat16()).all()
