"""What comes out is what `map` gives, for any number of workers and whichever of them die."""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ext.data.preprocessing import ordered_pool
from megatron_ext.data.preprocessing.ordered_pool import ITEMS_AHEAD, MOST_DEATHS, ordered_map
from megatron_ext.errors import ConfigError, DataError, TokenizerError

ROOT = Path(ordered_pool.__file__).resolve().parents[3]
STRANGERS: set[int] = set()
"""Children of this process from before these tests, such as the one that the ranks of other tests are forked from."""


@pytest.fixture(autouse=True, scope="module")
def strangers() -> None:
    STRANGERS.update(children())


def children() -> set[int]:
    """Processes that these tests forked and have not waited for, zombies among them."""
    found = set()
    for entry in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (entry / "children").read_text().split()}
    return found - STRANGERS


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """After every test: no process, no zombie, no open file more than before."""
    gc.collect()
    before = children(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert (children(), len(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    monkeypatch.setattr("megatron_ext.log.warn", written.append)
    return written


def square(number: int) -> int:
    return number * number


def once(marker: Path) -> bool:
    """True for the first caller of all processes."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("count", [0, 1, 2, 5, 100])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 8])
def test_results_are_those_of_map_in_its_order(num_workers: int, count: int):
    def work(number: int) -> int:
        time.sleep(random.Random(number).random() * 0.002)
        return square(number)

    assert list(ordered_map(range(count), work, num_workers)) == list(map(square, range(count)))


def test_one_worker_is_this_process_and_several_are_not():
    def whose(_: int) -> int:
        return os.getpid()

    def never() -> None:
        raise AssertionError

    assert set(ordered_map(range(3), whose, 1, start=never)) == {os.getpid()}
    pids = set(ordered_map(range(20), whose, 2))
    assert len(pids) == 2 and os.getpid() not in pids
    assert len(set(ordered_map(range(1), whose, 8))) == 1


def test_no_worker_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="0 workers"):
        list(ordered_map([], square, 0))


def test_start_runs_once_in_each_worker_before_its_first_item():
    calls: list[int] = []
    results = list(ordered_map(range(40), lambda _: (os.getpid(), tuple(calls)), 2, start=lambda: calls.append(1)))
    assert {seen for _, seen in results} == {(1,)} and calls == []


@pytest.mark.parametrize("num_workers", [2, 3])
def test_few_items_are_read_ahead(num_workers: int):
    read = 0

    def counted() -> Iterator[int]:
        nonlocal read
        for number in range(60):
            read += 1
            yield number

    for yielded, _ in enumerate(ordered_map(counted(), square, num_workers)):
        assert read - yielded <= ITEMS_AHEAD * num_workers
    assert read == 60


def test_items_wait_at_every_worker_while_the_consumer_is_busy():
    """Both workers finish what they hold, payloads larger than any pipe included, while this process does nothing."""
    payload = os.urandom(1 << 20)
    with closing(ordered_map([payload] * 30, lambda item: (time.monotonic(), item), 2)) as results:
        next(results)
        time.sleep(0.2)
        woke = time.monotonic()
        finished = [next(results)[0] for _ in range(2 * ITEMS_AHEAD - 1)]
    assert sum(when < woke for when in finished) >= 2 * ITEMS_AHEAD - 2


@pytest.mark.parametrize("size", [1, 70_000, 5_000_000])
def test_payloads_of_any_size_go_both_ways_at_once(size: int):
    items = [(number, bytes([number]) * size, np.full(size // 8, number, "<i8")) for number in range(12)]
    for item, (number, payload, array) in zip(items, ordered_map(items, lambda item: item, 2), strict=True):
        assert number == item[0] and payload == item[1] and np.array_equal(array, item[2])


def test_thirty_random_kills_change_nothing(warnings: list[str]):
    """300 items of large payloads pass while workers are killed at any moment: writing, working, reading, idle."""
    generator = random.Random(5)
    payload = os.urandom(200_000)
    kills = 0

    def work(item: tuple[int, bytes]) -> tuple[int, bytes, int]:
        time.sleep(0.001)
        return item[0], item[1][item[0] :], os.getpid()

    for number, result in enumerate(ordered_map(((n, payload) for n in range(300)), work, 2)):
        assert result[:2] == (number, payload[number:])
        if number % 10 == 0:
            time.sleep(generator.random() * 0.004)
            os.kill(generator.choice(sorted(children())), signal.SIGKILL)
            kills += 1
    assert number == 299 and kills == 30
    assert len(warnings) == kills and all("SIGKILL" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("die", "cause"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "was ended by SIGTERM"),
        (lambda: (faulthandler.disable(), os.abort()), "was ended by SIGABRT"),
        (lambda: os._exit(3), "ended with exit status 3"),
        (lambda: os._exit(0), "ended with exit status 0"),
    ],
)
def test_a_dead_worker_is_replaced_and_told_of(die: Callable[[], Any], cause: str, tmp_path: Path, warnings: list[str]):
    def work(number: int) -> int:
        if number == 7 and once(tmp_path / "died"):
            die()
        return square(number)

    assert list(ordered_map(range(30), work, 2, "record {}".format)) == list(map(square, range(30)))
    assert len(warnings) == 1
    assert f"{cause} while it worked on record 7; another does that again (attempt 2 of {MOST_DEATHS})" in warnings[0]


def test_all_workers_dying_at_once_change_nothing(warnings: list[str]):
    with closing(ordered_map(range(100), square, 3)) as results:
        for number in range(100):
            assert next(results) == square(number)
            if number in (10, 50):
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
    assert len(warnings) >= 4


def test_a_worker_killed_while_idle_is_not_missed(warnings: list[str]):
    def work(number: int) -> int:
        time.sleep(0.15 if number == 1 else 0)
        return os.getpid()

    results = ordered_map(range(2), work, 2)
    os.kill(next(results), signal.SIGKILL)
    assert len(list(results)) == 1
    assert len(warnings) == 1 and "nothing to do" in warnings[0]


def test_a_replacement_inherits_no_more_than_what_it_replaces(warnings: list[str]):
    def pipes(_: int) -> int:
        names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum(name.startswith("pipe:") for name in names)

    found = set()
    for number, count in enumerate(ordered_map(range(60), pipes, 3)):
        found.add(count)
        if number in (10, 20, 30):
            os.kill(max(children()), signal.SIGKILL)
    assert len(found) == 1 and warnings


def test_an_item_that_kills_every_worker_ends_the_run(warnings: list[str]):
    def work(number: int) -> int:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return square(number)

    results = ordered_map(range(30), work, 2, lambda number: f"records {number}001-{number + 1}000 of corpus.jsonl")
    assert [next(results) for _ in range(7)] == list(map(square, range(7)))
    with pytest.raises(DataError) as raised:
        next(results)
    assert "records 7001-8000 of corpus.jsonl" in raised.value.what and "SIGKILL" in raised.value.what
    assert "memory" in raised.value.rule and "--workers 2" in raised.value.fix
    assert len(warnings) == MOST_DEATHS - 1


def test_an_item_that_kills_two_workers_does_not_end_the_run(tmp_path: Path, warnings: list[str]):
    def work(number: int) -> int:
        if number == 7 and (once(tmp_path / "first") or once(tmp_path / "second")):
            os._exit(1)
        return square(number)

    assert list(ordered_map(range(30), work, 2)) == list(map(square, range(30)))
    assert len(warnings) == 2


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize(
    "error", [DataError("what", "rule", "fix"), TokenizerError("only what"), KeyError("key"), SystemExit(3)]
)
def test_an_exception_keeps_type_and_arguments_and_comes_in_its_turn(error: BaseException, num_workers: int):
    def work(number: int) -> int:
        if number >= 7:
            raise error
        time.sleep(0.005)
        return number

    results = ordered_map(range(30), work, num_workers)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(type(error)) as raised:
        next(results)
    assert type(raised.value) is type(error) and raised.value.args == error.args
    if isinstance(error, DataError):
        assert (raised.value.what, raised.value.rule, raised.value.fix) == ("what", "rule", "fix")
    elif isinstance(error, KeyError) and num_workers > 1:
        assert "test_ordered_pool.py" in "".join(raised.value.__notes__)


def test_a_result_that_cannot_cross_is_an_error_of_its_item():
    results = ordered_map(range(3), lambda number: (lambda: 1) if number == 1 else number, 2)
    assert next(results) == 0
    with pytest.raises(Exception, match="pickle"):
        next(results)


def test_an_item_that_cannot_cross_is_an_error():
    with pytest.raises(Exception, match="pickle"):
        list(ordered_map([lambda: 1], id, 2))


def test_an_exception_in_start_is_raised():
    def start() -> None:
        raise ConfigError("no such tokenizer")

    with pytest.raises(ConfigError, match="no such tokenizer"):
        list(ordered_map(range(9), square, 2, start=start))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_while_reading_comes_after_everything_read_before_it(num_workers: int):
    def failing() -> Iterator[int]:
        yield from range(5)
        raise DataError("the disk fails")

    results = ordered_map(failing(), square, num_workers)
    assert [next(results) for _ in range(5)] == list(map(square, range(5)))
    with pytest.raises(DataError, match="the disk fails"):
        next(results)


def test_closing_early_ends_workers_in_the_middle_of_their_work():
    def work(number: int) -> int:
        time.sleep(0 if number == 0 else 60)
        return number

    results = ordered_map(range(10), work, 2)
    assert next(results) == 0 and len(children()) == 2
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 1 and not children()


def test_forgetting_the_results_ends_the_workers():
    results = ordered_map(range(100), square, 2)
    next(results)
    del results


def test_two_pools_at_once_do_not_hold_each_other():
    one, two = ordered_map(range(50), square, 2), ordered_map(range(50), square, 2)
    assert [(next(one), next(two)) for _ in range(50)] == [(square(n), square(n)) for n in range(50)]
    assert list(one) == list(two) == []


def test_a_death_is_seen_though_something_else_holds_the_pipe(tmp_path: Path, warnings: list[str]):
    """A process that the worker forked, and that lives on, keeps the worker's end of the pipe open."""

    def work(number: int) -> int:
        if number == 3 and once(tmp_path / "died"):
            if os.fork() == 0:
                time.sleep(2.5)
                os._exit(0)
            os._exit(1)
        return square(number)

    began = time.monotonic()
    assert list(ordered_map(range(20), work, 2)) == list(map(square, range(20)))
    assert len(warnings) == 1 and time.monotonic() - began < 2.4


def test_too_few_processes_or_files_are_a_plain_error(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    for name in ("fork", "memfd_create", "pipe"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            with pytest.raises(DataError, match=r"Resource temporarily unavailable.*ulimit"):
                list(ordered_map(range(5), square, 2))


PARENT = """
import os, signal, sys, time
from megatron_ext.data.preprocessing.ordered_pool import ordered_map

def work(number):
    if number < 2:
        return os.getpid()
    while True:  # never lets go of the interpreter for long, and never reads its pipe
        pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
results = ordered_map(range(8), work, 2)
print(next(results), next(results), flush=True)
next(results)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_when_their_parent_is_killed(number: int):
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.send_signal(number)
    limit = time.monotonic() + 30  # it takes a moment; a machine may be busy
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in pids):
        assert time.monotonic() < limit, "a worker outlives its parent"
        time.sleep(0.01)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_interrupting_everything_interrupts_the_parent_alone():
    """Ctrl-C reaches the whole group: workers go on, and the parent decides."""
    with closing(ordered_map(range(50), lambda number: (time.sleep(0.002), square(number))[1], 2)) as results:
        assert next(results) == 0
        for pid in children():
            os.kill(pid, signal.SIGINT)
        workers = children()
        assert list(results) == [square(number) for number in range(1, 50)]
    assert len(workers) == 2


def test_an_item_that_no_file_in_memory_takes_is_told_in_one_paragraph(monkeypatch: pytest.MonkeyPatch):
    def send(self: object, item: object, task: object) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(ordered_pool.WorkerProcess, "send", send)
    with pytest.raises(DataError, match=r"item 1 of the input cannot be handed .*File too large.*--workers 1"):
        list(ordered_map(range(3), square, 2))
