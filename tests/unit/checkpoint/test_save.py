"""Saving is atomic (law L7): stopped before any file-system operation, the folder holds the old or the new state."""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_ext.checkpoint.load import find_checkpoint, load_checkpoint
from megatron_ext.checkpoint.manifest import MANIFEST, files_of, read_manifest
from megatron_ext.checkpoint.names import TRACKER, checkpoint_folder, read_tracker, saved_iterations, staging_folder
from megatron_ext.checkpoint.record import CheckpointRecord
from megatron_ext.checkpoint.save import Retention, save_checkpoint, training_tensors
from megatron_ext.config import CheckpointConfig
from megatron_ext.errors import CheckpointError
from megatron_ext.parallel.world import World
from megatron_ext.training.components import Components
from tests.unit.checkpoint.saved import components, fill, numbers, save_filled
from tests.unit.tiny import VOCAB_SIZE


class Killed(BaseException):
    """Nobody catches it: what a SIGKILL looks like to the code."""


FAILURES: dict[str, Callable[[], BaseException]] = {
    "kill": Killed,
    "disk full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "no permission": lambda: PermissionError(errno.EACCES, "Permission denied"),
}


class Operations:
    """Counts what changes the disk, and raises before the operation number `stop_at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.stop_at: int | None = None
        self.failure: Callable[[], BaseException] = Killed
        self.names: list[str] = []
        for name in ("replace", "mkdir", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        # these tests cut no power, and forcing a thousand files to disk takes half a minute
        monkeypatch.setattr(os, "fsync", self._counted("fsync", lambda _: None))
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", self._opened(module.open))

    def _before(self, name: str) -> None:
        self.names.append(name)
        self.count += 1
        if self.count - 1 == self.stop_at:
            raise self.failure()

    def _counted(self, name: str, operation: Callable) -> Callable:
        def counted(*arguments: object, **options: object) -> object:
            self._before(name)
            return operation(*arguments, **options)

        return counted

    def _opened(self, operation: Callable) -> Callable:
        def opened(file: object, mode: str = "r", *arguments: object, **options: object) -> object:
            if set(mode) & set("wax+"):
                self._before("open")
            return operation(file, mode, *arguments, **options)

        return opened

    def run(self, action: Callable[[], object], stop_at: int | None, failure: str = "kill") -> bool:
        """Run `action` with one failing operation; whether it came through."""
        self.count, self.stop_at, self.failure, self.names = 0, stop_at, FAILURES[failure], []
        try:
            action()
        except Killed:
            return False
        except CheckpointError as error:
            text = str(error)
            assert "\n" not in text, text
            if failure == "kill":
                assert "Killed" in text  # torch has wrapped it, and nothing has been cleaned up since
            else:
                assert FAILURES[failure]().strerror in text, text
            return False
        finally:
            self.stop_at = None
        return True


@dataclass
class Scene:
    """A folder before a save, and the save."""

    parts: Components
    fresh: Components
    operations: Operations
    before: Path
    root: Path
    tokenizer_model: Path

    def restart(self) -> None:
        """Bring the folder back to how it was before the save."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self.before.exists():
            shutil.copytree(self.before, self.root)

    def save(self, iteration: int, value: int) -> None:
        """The save under test: every number is `value`."""
        fill(self.parts, value)
        state = {"iteration": iteration, "consumed_samples": value, "consumed_tokens": value}
        files = [self.tokenizer_model]
        record = CheckpointRecord(self.parts.run, VOCAB_SIZE, state, optimizer_step=value, tokenizer_files=["t.model"])
        tensors = training_tensors(self.parts.models, self.parts.optimizer, False)
        save_checkpoint(self.root, tensors, record, files, Retention(keep_last=1))

    def load(self) -> tuple[int, int] | None:
        """Iteration and value of what loads; all of it must be of one save."""
        folder = find_checkpoint(CheckpointConfig(load=str(self.root)))
        if folder is None:
            return None
        fill(self.fresh, -1)
        record = load_checkpoint(folder, self.fresh.run, VOCAB_SIZE, self.fresh.models, self.fresh.optimizer)
        value = record.state["consumed_samples"]
        assert numbers(self.fresh) == {value}
        assert record.optimizer_step == value
        return record.iteration, value


@pytest.fixture
def scene(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    model = tmp_path / "t.model"
    model.write_bytes(b"tokens")
    settings = {"num_layers": 1}
    return Scene(
        components(world, **settings), components(world, **settings), Operations(monkeypatch),
        tmp_path / "before", tmp_path / "run", model,
    )  # fmt: skip


# name -> (what is saved before as {iteration: value}, iteration to save with value 9)
STARTS = {"the first save": ({}, 1), "a newer save": ({1: 1}, 2), "the same iteration again": ({1: 1}, 1)}


@pytest.mark.parametrize(
    ("failure", "start"),
    [*(("kill", start) for start in STARTS), ("disk full", "a newer save"), ("no permission", "the first save")],
)
def test_a_failure_before_any_operation_leaves_the_old_or_the_new_state(scene: Scene, start: str, failure: str):
    before, iteration = STARTS[start]
    for number, value in before.items():
        save_filled(scene.parts, scene.before, number, value)
    old = next(iter(before.items()), None)
    scene.restart()
    assert scene.load() == old
    assert scene.operations.run(lambda: scene.save(iteration, 9), None)
    total, new = scene.operations.count, (iteration, 9)
    assert scene.load() == new
    assert total > 15, scene.operations.names
    outcomes = []
    for stop_at in range(total):
        scene.restart()
        came_through = scene.operations.run(lambda: scene.save(iteration, 9), stop_at, failure)
        outcomes.append(scene.load())
        assert outcomes[-1] in (old, new), (stop_at, scene.operations.names)
        assert not came_through or outcomes[-1] == new, (stop_at, scene.operations.names)
        if stop_at % 3 == 0 or stop_at > total - 8:
            scene.save(iteration + 1, 5)
            assert scene.load() == (iteration + 1, 5)
            assert sorted(os.listdir(scene.root)) == [f"iter_{iteration + 1:07d}", TRACKER], stop_at
    if failure == "kill":
        # once the new state is there, nothing later takes it away; and both sides of that moment were tried
        assert outcomes == sorted(outcomes, key=lambda outcome: outcome == new)
        assert set(outcomes) == {old, new}


def test_what_a_checkpoint_holds(scene: Scene):
    scene.save(3, 7)
    folder = checkpoint_folder(scene.root, 3)
    expected = [".metadata", "__0_0.distcp", "common.pt", "metadata.json", "state.json", "tokenizer/t.model"]
    assert files_of(folder) == expected
    assert sorted(read_manifest(folder)) == expected
    assert (folder / "tokenizer/t.model").read_bytes() == b"tokens"
    assert read_tracker(scene.root) == 3


def test_everything_is_forced_to_disk_before_it_is_published(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a power cut after the rename must find: every file and folder inside, the manifest last, then the parent."""
    events: list[tuple[str, str]] = []
    descriptors: dict[int, str] = {}
    real_open, real_fsync, real_replace = os.open, os.fsync, os.replace

    def noted_open(path: str | os.PathLike, *arguments: int, **options: int) -> int:
        descriptor = real_open(path, *arguments, **options)
        descriptors[descriptor] = str(path)
        return descriptor

    def noted_fsync(descriptor: int) -> None:
        path = descriptors.get(descriptor) if not isinstance(descriptor, io.IOBase) else descriptor.name
        events.append(("fsync", str(path)))
        real_fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        events.append(("replace", str(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    scene.save(3, 7)
    staging, final = staging_folder(scene.root, 3), checkpoint_folder(scene.root, 3)
    published = events.index(("replace", str(final)))
    forced = {path for kind, path in events[:published] if kind == "fsync"}
    inside = [path.relative_to(final) for path in final.rglob("*") if path.name != MANIFEST]
    assert {str(staging / name) for name in inside} | {str(staging)} <= forced
    manifest = events.index(("replace", str(staging / MANIFEST)))
    assert all(events.index(("fsync", str(staging / name))) < manifest for name in inside)
    assert events[published + 1] == ("fsync", str(scene.root))
    assert events.index(("replace", str(scene.root / TRACKER))) > published


def test_retention_keeps_what_was_asked_for(scene: Scene):
    fill(scene.parts, 1)
    tensors = training_tensors(scene.parts.models, scene.parts.optimizer, False)
    for iteration in range(1, 9):
        state = {"iteration": iteration, "consumed_samples": 1, "consumed_tokens": 1}
        record = CheckpointRecord(scene.parts.run, VOCAB_SIZE, state)
        save_checkpoint(scene.root, tensors, record, retention=Retention(keep_last=2, retain_interval=3))
    assert saved_iterations(scene.root) == [3, 6, 7, 8]


def test_a_run_started_again_from_an_older_checkpoint_keeps_its_own_newest(scene: Scene):
    for iteration in (10, 20, 30):
        save_filled(scene.parts, scene.root, iteration, iteration)
    scene.save(15, 4)  # keeps the last one
    assert scene.load() == (15, 4)
    assert saved_iterations(scene.root) == [15, 20, 30]


def test_a_folder_that_cannot_be_made(scene: Scene):
    scene.root.write_text("a file")
    with pytest.raises(CheckpointError, match=r"--save .*run cannot be written.*File exists.*older checkpoints"):
        scene.save(1, 1)


def test_a_tokenizer_file_that_has_gone(scene: Scene):
    scene.tokenizer_model.unlink()
    with pytest.raises(CheckpointError, match=r"writing .* failed.*t\.model"):
        scene.save(1, 1)
    assert scene.load() is None
