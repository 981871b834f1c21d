"""Items through worker processes, results in the order of the items; dead workers are replaced, their items redone.

What comes out is what `map(work, items)` gives, for any number of workers and whichever of them die: the same results
in the same order, and the same exception at the same place. Only an item that kills one worker after the other ends
the run.
"""

from __future__ import annotations

import select
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from megatron_ext import log
from megatron_ext.data.preprocessing.worker_process import Duty, Task, WorkerProcess
from megatron_ext.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")

ITEMS_AHEAD = 3
"""Items per worker that are read but not yet yielded: enough to keep it busy, few enough to bound memory."""
MOST_DEATHS = 3
"""Workers that one item may kill, one after the other, before the run ends."""

_LOOK_AFTER_SECONDS = 1.0  # how often silent workers are looked after, should a death not show at its pipe


def ordered_map(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    num_workers: int,
    describe: Callable[[Item], str] | None = None,
    start: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Results of `work` in the order of `items`; nothing is lost or done twice in what is yielded.

    Closing the generator, or an exception at its end, ends all workers. An exception from `items` or `work` is raised
    after the results of everything before it. One from `work` keeps its type and message and carries the worker's
    traceback as a note; one that cannot be pickled becomes a RuntimeError that says what it was.

    Args:
        items: read lazily, `ITEMS_AHEAD` per worker ahead of what was yielded. Items and results must be picklable,
            unless one worker is asked for.
        work: a pure function of the item, for an item may be given to it again. Workers are forked: it need not be
            picklable and sees what this process has loaded.
        num_workers: worker processes, at least 1; one means this process, without any fork.
        describe: what messages call an item; by default its number.
        start: called once in every worker process before its first item; never in this process.

    Raises:
        DataError: an item killed `MOST_DEATHS` workers, or no worker can be started.
    """
    if num_workers < 1:
        raise ValueError(f"{num_workers} workers")
    if num_workers == 1:
        yield from map(work, items)
        return
    pool = _Pool(Duty(work, start), num_workers)
    try:
        yield from pool.results(_described(items, describe))
    finally:
        pool.close()


def _described(items: Iterable[Item], describe: Callable[[Item], str] | None) -> Iterator[tuple[Item, str]]:
    for number, item in enumerate(items, 1):
        yield item, describe(item) if describe else f"item {number} of the input"


class _Pool:
    """Workers and the items on their way through them."""

    def __init__(self, duty: Duty, num_workers: int) -> None:
        self._duty = duty
        self._num_workers = num_workers
        self._workers: list[WorkerProcess] = []  # started when there is an item for them
        self._tasks: deque[Task] = deque()  # read and not yet yielded, in the order of the items

    def results(self, items: Iterator[tuple[Any, str]]) -> Iterator[Any]:
        """Results in the order of the items (each with what messages call it)."""
        reading_failure: Exception | None = None
        reading = True
        while True:
            self._receive(seconds=0.0)
            while reading and len(self._tasks) < ITEMS_AHEAD * self._num_workers:
                try:
                    item, description = next(items)
                except StopIteration:
                    reading = False
                except Exception as error:  # raised when its turn comes
                    reading, reading_failure = False, error
                else:
                    self._send(item, description)
            if not self._tasks:
                break
            while not self._tasks[0].done:
                self._receive(_LOOK_AFTER_SECONDS)
            yield self._tasks.popleft().outcome()
        if reading_failure:
            raise reading_failure

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.close()

    def _send(self, item: object, description: str) -> None:
        worker = min(self._workers, key=lambda worker: len(worker.unanswered), default=None)
        if worker is None or (worker.unanswered and len(self._workers) < self._num_workers):
            worker = self._new_worker()
        task = Task(description)
        try:
            worker.send(item, task)
        except OSError as error:
            raise DataError(
                f"{description} cannot be handed to a worker process ({error.strerror})",
                "It goes through a file in memory, which the limits of memory and of file sizes (ulimit -f) concern",
                "Raise that limit, or run with --workers 1",
            ) from None
        self._tasks.append(task)

    def _receive(self, seconds: float) -> None:
        """Take the answers that have come, waiting for one at most so long, and replace the workers that died."""
        by_descriptor = {worker.fileno(): worker for worker in self._workers}
        poll = select.poll()
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        ready = [by_descriptor[descriptor] for descriptor, _ in poll.poll(seconds * 1000)]
        dead = [worker for worker in ready if not worker.receive()]
        if not ready and seconds:
            dead = [worker for worker in self._workers if worker.has_vanished()]
        for worker in dead:
            self._replace(worker)

    def _new_worker(self) -> WorkerProcess:
        try:
            worker = WorkerProcess(self._duty, ITEMS_AHEAD)
            worker.start(self._workers)
        except OSError as error:
            raise self._cannot_start(error) from None
        self._workers.append(worker)
        return worker

    def _replace(self, worker: WorkerProcess) -> None:
        pid, cause = worker.pid, _cause(worker.reap())
        if not worker.unanswered:
            log.warn(f"worker process {pid} {cause} while it had nothing to do")
            self._workers.remove(worker)
            worker.close()
            return
        task = worker.unanswered[0]
        task.deaths += 1
        if task.deaths == MOST_DEATHS:
            task.failure = self._deadly(task, cause)
            worker.finish_first()
        else:
            log.warn(
                f"worker process {pid} {cause} while it worked on {task.description}; another does that again "
                f"(attempt {task.deaths + 1} of {MOST_DEATHS})"
            )
        try:
            worker.start([other for other in self._workers if other is not worker])
        except OSError as error:
            raise self._cannot_start(error) from None

    def _deadly(self, task: Task, cause: str) -> DataError:
        return DataError(
            f"{MOST_DEATHS} worker processes died, one after the other, while they worked on {task.description}; "
            f"the last {cause}",
            "Usually the system ends a process for lack of memory (SIGKILL), or native code fails (SIGSEGV, SIGABRT); "
            "nothing was published",
            f"Run again with fewer than --workers {self._num_workers}, or without that part of the input",
        )

    def _cannot_start(self, error: OSError) -> DataError:
        return DataError(
            f"a worker process cannot be started ({error.strerror})",
            f"{len(self._workers)} of --workers {self._num_workers} are running; each needs one process and "
            f"{ITEMS_AHEAD + 2} open files",
            "Run again with fewer workers, or raise the limits (ulimit -u, ulimit -n)",
        )


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "died"
    if exit_code >= 0:
        return f"ended with exit status {exit_code}"
    try:
        return f"was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was ended by signal {-exit_code}"
