"""One worker process: what it inherits, what it reacts to, how it ends; the pool's test drives several of them."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.data.preprocessing.worker_process import Duty, Task, WorkerProcess
from megatron_ext.errors import MegatronExtError


@pytest.fixture
def make() -> Iterator[Callable[..., WorkerProcess]]:
    workers: list[WorkerProcess] = []

    def started(work: Callable[[Any], Any]) -> WorkerProcess:
        worker = WorkerProcess(Duty(work), 3)
        worker.start(list(workers))
        workers.append(worker)
        return worker

    yield started
    for worker in workers:
        worker.close()
        worker.close()


def ask(worker: WorkerProcess, item: object) -> Any:
    task = Task("the item")
    worker.send(item, task)
    assert worker.receive()
    return task.outcome()


def open_files(_: object) -> dict[str, int]:
    names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return {name: names.count(name) for name in names}


def test_items_are_answered_in_the_order_sent(make: Callable[..., WorkerProcess]):
    worker = make(lambda item: item * 2)
    tasks = [Task(str(item)) for item in range(3)]
    for item, task in enumerate(tasks):
        worker.send(item, task)
    for number in range(3):
        assert worker.receive() and [task.done for task in tasks] == [index <= number for index in range(3)]
    assert [task.outcome() for task in tasks] == [0, 2, 4] and worker.unanswered == []


def test_the_next_process_finds_the_items_of_the_dead_one(make: Callable[..., WorkerProcess], tmp_path: Path):
    def work(item: bytes) -> bytes:
        if not (tmp_path / "go").exists():
            time.sleep(60)
        return item * 2

    worker = make(work)
    tasks = [Task("one"), Task("two")]
    for item, task in zip((b"a" * 100_000, b"b"), tasks, strict=True):
        worker.send(item, task)
    os.kill(worker.pid, signal.SIGKILL)
    assert not worker.receive() and worker.reap() == -signal.SIGKILL
    (tmp_path / "go").touch()
    worker.start([])
    assert worker.receive() and worker.receive()
    assert [task.outcome() for task in tasks] == [b"a" * 200_000, b"bb"]


def test_workers_hold_no_end_of_a_pipe_but_their_own_two(make: Callable[..., WorkerProcess]):
    before = {name for name in open_files(None) if name.startswith("pipe:")}
    workers = [make(open_files) for _ in range(3)]
    os.kill(workers[0].pid, signal.SIGKILL)
    assert not workers[0].receive()
    workers[0].reap()
    workers[0].start(workers[1:])
    for worker in workers:
        inside = ask(worker, None)
        assert [count for name, count in inside.items() if name.startswith("pipe:") and name not in before] == [1, 1]
        assert sum(count for name, count in inside.items() if "memfd" in name) == 3


def test_reactions_to_signals_are_not_inherited(make: Callable[..., WorkerProcess]):
    def reactions(_: object) -> tuple[Any, Any, set[int]]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), {int(number) for number in blocked}

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the parent's reaction ran in the worker"))
    try:
        worker = make(reactions)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ask(worker, None) == (signal.SIG_IGN, signal.SIG_DFL, set())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_what_the_parent_left_to_the_collector_is_not_flushed_by_a_worker(
    make: Callable[..., WorkerProcess], tmp_path: Path
):
    gc.disable()
    try:
        stream = (tmp_path / "file").open("wb", buffering=1 << 20)
        stream.write(b"not flushed yet")
        cycle: list[Any] = [stream]
        cycle.append(cycle)
        del cycle, stream
        collected = ask(make(lambda _: gc.collect()), None)
        assert (tmp_path / "file").read_bytes() == b"" and collected == 0
    finally:
        gc.enable()
    gc.collect()


def test_an_error_of_the_user_crosses_without_a_traceback_even_if_its_class_cannot(
    make: Callable[..., WorkerProcess],
):
    class Local(MegatronExtError):
        pass

    def fail(kind: str) -> None:
        raise (Local if kind == "local" else MegatronExtError)("what", "rule", "fix")

    worker = make(fail)
    for kind in ("global", "local"):
        with pytest.raises(MegatronExtError, match=r"what\. rule\. fix\.") as raised:
            ask(worker, kind)
        assert not hasattr(raised.value, "__notes__")


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Wrapping(Exception):
    """Pickling gives its whole message to __init__, which would wrap it twice."""

    def __init__(self, one: int) -> None:
        super().__init__(f"<{one}>")


@pytest.mark.parametrize(
    ("error", "told"), [(Unpicklable(0, 5), "Unpicklable: 0 and 5"), (Wrapping(3), "Wrapping: <3>")]
)
def test_an_exception_that_cannot_cross_says_what_it_was(
    make: Callable[..., WorkerProcess], error: Exception, told: str
):
    def fail(_: object) -> None:
        raise error

    with pytest.raises(RuntimeError) as raised:
        ask(make(fail), None)
    assert raised.value.args == (told,) and "raise error" in raised.value.__notes__[0]


@pytest.mark.parametrize("status", [0, 5])
def test_the_way_it_ended_is_told(make: Callable[..., WorkerProcess], status: int):
    worker = make(os._exit)
    assert not worker.has_vanished()
    worker.send(status, Task("the end"))
    assert not worker.receive() and worker.reap() == status and worker.reap() is None


def test_a_program_that_ignores_its_children_loses_only_the_cause(make: Callable[..., WorkerProcess]):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        worker = make(os._exit)
        worker.send(3, Task("the end"))
        assert not worker.receive()
        assert worker.reap() is None
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_sending_to_a_dead_process_is_left_to_its_replacement(make: Callable[..., WorkerProcess]):
    worker = make(abs)
    os.kill(worker.pid, signal.SIGKILL)
    assert not worker.receive()
    task = Task("late")
    worker.send(-5, task)
    assert not worker.receive()
    worker.reap()
    worker.start([])
    assert worker.receive() and task.outcome() == 5
