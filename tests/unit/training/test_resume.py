"""Where a run starts: the beginning, the whole state of a checkpoint, or its weights alone (laws L2, L3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_ext.checkpoint.full import FullState, open_full, write_full
from megatron_ext.checkpoint.load import find_checkpoint
from megatron_ext.checkpoint.names import checkpoint_folder
from megatron_ext.checkpoint.record import read_record
from megatron_ext.config import CheckpointConfig
from megatron_ext.data.blend import BlendView
from megatron_ext.data.blend_schedule import parse_schedule, scheduled_mixture
from megatron_ext.data.datasets import Datasets
from megatron_ext.data.views import View
from megatron_ext.errors import CheckpointError
from megatron_ext.parallel.world import World, start_world
from megatron_ext.platform.cpu import CpuPlatform
from megatron_ext.training import resume
from megatron_ext.training.blend_policy import apply_decisions
from megatron_ext.training.components import Components
from megatron_ext.training.metrics import TrainState
from megatron_ext.training.resume import describe_order, save_state, start_state
from megatron_ext.training.schedule import Schedule, schedule_settings
from megatron_ext.training.source_losses import Decision, SourceProgress, SourceTotals
from tests.unit.checkpoint.saved import VARIANTS, assert_same, components, save_trained, state_of, train
from tests.unit.tiny import VOCAB_SIZE, TokenView, tiny_run
from tests.unit.training.blends import easy_and_hard


def moments(parts: Components) -> list[torch.Tensor]:
    """The optimizer's tensors beside the weights."""
    return [tensor for (name, _), tensor in state_of(parts).items() if ".exp_avg" in name]


def weights(parts: Components) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parts.models[0].parameters()]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_load_a_run_starts_at_the_beginning(world: World):
    parts = components(world)
    before = state_of(parts)
    assert start_state(parts) == TrainState()
    assert_same(state_of(parts), before)


@pytest.mark.parametrize("made", [True, False])
def test_an_empty_load_folder_is_the_beginning_with_a_warning(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], made: bool
):
    if made:
        (tmp_path / "run").mkdir()
    assert start_state(components(world, load=str(tmp_path / "run"))) == TrainState()
    said = capsys.readouterr()
    assert f"--load {tmp_path / 'run'} holds no checkpoint" in said.out + said.err


def test_every_counter_comes_back(world: World, tmp_path: Path):
    parts = components(world, save=str(tmp_path))
    state = TrainState(7, 28, 448, 8, 2, 1)
    save_state(parts, state)
    resumed = start_state(components(world, load=str(tmp_path)))
    assert resumed == state
    assert resumed.schedule_step == 20


@pytest.mark.parametrize("variant", ["fp32", "bf16", "fp16", "sgd", "bf16 distributed"])
def test_stopping_anywhere_changes_nothing(world: World, tmp_path: Path, variant: str):
    settings = {**VARIANTS[variant], "lr_decay_style": "cosine", "min_lr": 1e-3, "hidden_dropout": 0.1}
    straight, state = components(world, **settings), TrainState()
    expected = train(straight, state, 5)
    found, end = [], None
    for stop in (1, 2, 4, 5):
        parts = components(world, save=str(tmp_path), load=str(tmp_path), **settings)
        resumed = start_state(parts)
        found += train(parts, resumed, stop - resumed.iteration)
        save_state(parts, resumed)
        end = resumed
    assert found == expected
    assert end == state
    assert_same(state_of(parts), state_of(straight))


def test_finetune_takes_the_weights_and_nothing_else(world: World, tmp_path: Path):
    old, _ = save_trained(world, tmp_path, 2)
    parts = components(world, load=str(tmp_path), finetune=True, seed=5, lr=3e-4, optimizer="sgd", sgd_momentum=0.5)
    parts.datasets = Datasets(TokenView(seed=99), None, None)
    schedule = parts.schedule
    assert start_state(parts) == TrainState()
    assert same(weights(parts), weights(old))
    assert parts.schedule == schedule
    momenta = [tensor for (name, _), tensor in state_of(parts).items() if "momentum_buffer" in name]
    assert momenta
    assert not any(momentum.any() for momentum in momenta)


@pytest.mark.parametrize("flag", ["finetune", "no_load_optim"])
@pytest.mark.parametrize("precision", ["bf16", "bf16 distributed", "fp32"])
def test_the_first_step_from_weights_alone_starts_at_those_weights(
    world: World, tmp_path: Path, flag: str, precision: str
):
    """In half precision the optimizer has its own copy of the weights, which must not be the initial one."""
    old, _ = save_trained(world, tmp_path, 2, **VARIANTS[precision])
    parts = components(world, load=str(tmp_path), seed=5, **{flag: True}, **VARIANTS[precision])
    state = start_state(parts)
    assert not any(moment.any() for moment in moments(parts))
    mains = {name: tensor for (name, _), tensor in state_of(parts).items() if ".fp32_param." in name}
    named = dict(old.models[0].named_parameters())
    assert bool(mains) == (precision != "fp32")
    for name, main in mains.items():
        parameter = named[name.removeprefix("optimizer.state.fp32_param.")]
        assert main.numel() <= parameter.numel()
        assert set(main.unique().tolist()) <= set(parameter.float().unique().tolist())
    assert same(weights(parts), weights(old))
    parts.schedule = replace(parts.schedule, max_lr=0.0, min_lr=0.0, start_wd=0.0, end_wd=0.0)
    train(parts, state, 1)
    assert same(weights(parts), weights(old))


def test_no_load_optim_keeps_the_counters(world: World, tmp_path: Path):
    old, state = save_trained(world, tmp_path, 3)
    parts = components(world, load=str(tmp_path), no_load_optim=True, seed=5)
    assert start_state(parts) == state
    assert same(weights(parts), weights(old))


def test_a_checkpoint_without_optimizer_state_resumes_only_when_asked_to(world: World, tmp_path: Path):
    old, state = save_trained(world, tmp_path, 2, no_save_optim=True)
    assert read_record(checkpoint_folder(tmp_path, 2)).optimizer_step is None
    with pytest.raises(CheckpointError, match=r"saved without optimizer state.*--finetune.*--no-load-optim"):
        start_state(components(world, load=str(tmp_path)))
    parts = components(world, load=str(tmp_path), no_load_optim=True)
    assert start_state(parts) == state
    assert same(weights(parts), weights(old))


def test_an_imported_model_starts_at_zero(tmp_path: Path):
    with start_world(tiny_run(), CpuPlatform()) as world:
        saved, _ = save_trained(world, tmp_path / "run", 2)
        expected = weights(saved)
    full = open_full(tmp_path / "run")
    write_full(tmp_path / "new", FullState(tiny_run(), VOCAB_SIZE, [(name, full.read(name)) for name in full.names()]))
    with start_world(tiny_run(), CpuPlatform()) as world:
        for flag in ("finetune", "no_load_optim"):
            parts = components(world, load=str(tmp_path / "new"), seed=5, **{flag: True})
            assert start_state(parts) == TrainState()
            assert same(weights(parts), expected)


# another order of samples ---------------------------------------------------------------------------------------


class Reordered(TokenView):
    """The same samples in another order."""

    def sample_ids(self, start: int, count: int):
        return super().sample_ids(start, count)[::-1]


class Longer(TokenView):
    """The same first samples, more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = torch.cat([torch.from_numpy(self.tokens)] * 2).numpy()


OTHER_DATA = {
    "checksum of the first samples": lambda: TokenView(seed=1),
    "checksum of the order": Reordered,
    "samples in one epoch": Longer,
    "tokens": lambda: TokenView(samples=13),
}


@pytest.mark.parametrize("difference", OTHER_DATA)
def test_another_data_order_is_refused_with_what_differs(world: World, tmp_path: Path, difference: str):
    save_trained(world, tmp_path, 2)
    parts = components(world, load=str(tmp_path))
    parts.datasets = Datasets(OTHER_DATA[difference](), None, None)
    with pytest.raises(CheckpointError) as failure:
        start_state(parts)
    message = str(failure.value)
    assert f"{checkpoint_folder(tmp_path, 2)} was trained on another data order" in message
    assert f"{difference}: " in message
    assert "--finetune" in message
    assert "\n" not in message


def test_the_description_of_an_order_is_pure_and_has_no_arrays(world: World):
    assert describe_order(None, 0) == {}
    first = describe_order(TokenView(), 8)
    assert first == describe_order(TokenView(), 8)
    assert all(type(value) is int for value in first.values())
    different = [describe_order(view(), 8) for view in OTHER_DATA.values()]
    assert all(other != first for other in different)


# the sources of a blend ------------------------------------------------------------------------------------------


def blended(world: World, folder: Path, view: View) -> Components:
    parts = components(world, save=str(folder), load=str(folder))
    parts.datasets = Datasets(view, None, None)
    return parts


def test_what_was_counted_and_decided_comes_back_and_the_order_is_that_of_the_decisions(world: World, tmp_path: Path):
    """Decisions before place 256 are part of what tells one order from another."""
    parts, state = blended(world, tmp_path, easy_and_hard()), TrainState(3, 12, 192)
    state.sources = SourceProgress(*(SourceTotals(np.full((3, 2), number)) for number in (5, 7)))
    state.sources.decide(Decision(2, 8, (0.1, 0.9), (1.0, None)))
    apply_decisions(parts.datasets.train, state.sources.decisions)
    save_state(parts, state)
    again = blended(world, tmp_path, easy_and_hard())
    resumed = start_state(again)
    assert resumed == state and resumed.sources.since_report.sums.tolist() == [[5, 5]] * 3
    ids = again.datasets.train.sample_ids(0, 64).tolist()
    assert ids == parts.datasets.train.sample_ids(0, 64).tolist() != easy_and_hard().sample_ids(0, 64).tolist()
    for other in (easy_and_hard((0.6, 0.4)), TokenView()):
        with pytest.raises(CheckpointError, match="trained on another data order"):
            start_state(blended(world, tmp_path, other))


def test_an_older_checkpoint_of_a_blend_is_resumed_and_numbers_for_other_sources_are_refused(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parts, state = blended(world, tmp_path, easy_and_hard()), TrainState(3, 12, 192)
    save_state(parts, state)
    assert start_state(blended(world, tmp_path, easy_and_hard())) == state
    for sources, message in (
        ({"decisions": []}, "lack a value"),
        (SourceProgress.begin(3).to_record(), "other datasets"),
    ):
        monkeypatch.setattr(
            resume, "load_checkpoint", lambda folder, *_, said=sources: replace(read_record(folder), sources=said)
        )
        with pytest.raises(CheckpointError, match=message):
            start_state(blended(world, tmp_path, easy_and_hard()))


def scheduled(end: str) -> BlendView:
    """A blend whose weights move from 9:1; the first 256 samples are the same for every end."""
    view = easy_and_hard()
    return BlendView(view._views, scheduled_mixture(parse_schedule(["0:9,1", end], 2), 1))


def test_other_weights_far_from_the_beginning_are_noticed_where_the_run_stands(world: World, tmp_path: Path):
    save_state(blended(world, tmp_path, scheduled("8000000:4,1")), TrainState(3, 1_000_000, 16_000_000))
    assert start_state(blended(world, tmp_path, scheduled("8000000:4,1"))).consumed_samples == 1_000_000
    with pytest.raises(CheckpointError, match="checksum of the last samples: ") as failure:
        start_state(blended(world, tmp_path, scheduled("8000000:1,1")))
    assert "checksum of the order" not in str(failure.value)


def test_a_schedule_does_not_take_over_from_decisions(world: World, tmp_path: Path):
    parts, state = blended(world, tmp_path, easy_and_hard()), TrainState(3, 12, 192)
    state.sources = SourceProgress.begin(2)
    state.sources.decide(Decision(2, 8, (0.1, 0.9), (1.0, None)))
    apply_decisions(parts.datasets.train, state.sources.decisions)
    save_state(parts, state)
    other = blended(world, tmp_path, scheduled("8000000:4,1"))
    other.run = other.run.with_values(blend_schedule=("0:9,1", "8000000:4,1"))
    with pytest.raises(CheckpointError, match=r"decided by the losses, and --blend-schedule"):
        start_state(other)


# the schedule ---------------------------------------------------------------------------------------------------


def test_another_schedule_is_refused_unless_a_flag_says_which_wins(world: World, tmp_path: Path):
    save_trained(world, tmp_path, 2, lr=1e-2)
    with pytest.raises(CheckpointError, match=r"max_lr 0\.01 there, 0\.002 now \(--lr\).*--override-opt_param"):
        start_state(components(world, load=str(tmp_path), lr=2e-3))
    new = components(world, load=str(tmp_path), lr=2e-3, override_opt_param_scheduler=True)
    start_state(new)
    assert new.schedule == Schedule.from_settings(schedule_settings(new.run))
    assert new.schedule.max_lr == 2e-3
    old = components(world, load=str(tmp_path), lr=2e-3, use_checkpoint_opt_param_scheduler=True)
    state = start_state(old)
    assert old.schedule.max_lr == 1e-2
    assert train(old, state, 1)[0][2] == 1e-2
    # and that is what a later checkpoint of it says
    old.run = old.run.with_values(save=str(tmp_path / "next"))
    save_state(old, state)
    assert read_record(checkpoint_folder(tmp_path / "next", 3)).schedule["max_lr"] == 1e-2


# what a save keeps ----------------------------------------------------------------------------------------------


def test_a_save_keeps_what_a_resume_needs(world: World, tmp_path: Path):
    parts, state = save_trained(world, tmp_path, 3, **VARIANTS["fp16"])
    folder = find_checkpoint(CheckpointConfig(load=str(tmp_path)))
    assert folder == checkpoint_folder(tmp_path, 3)
    record = read_record(folder)
    assert record.run == parts.run
    assert record.state == state.to_dict()
    assert record.schedule == schedule_settings(parts.run)
    assert record.vocab_size == VOCAB_SIZE
    assert record.data == describe_order(parts.datasets.train, state.consumed_samples)
    assert record.loss_scaler["scale"] == parts.optimizer.get_loss_scale().item()
    assert record.optimizer_step == 3 - state.skipped_iterations
    assert record.provenance["software"].startswith("megatron_ext ")


def test_retention_follows_the_flags(world: World, tmp_path: Path):
    parts, state = components(world, save=str(tmp_path), keep_last=2, save_retain_interval=4), TrainState()
    for _ in range(9):
        state.iteration += 1
        save_state(parts, state)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == [f"iter_000000{i}" for i in (4, 8, 9)]
