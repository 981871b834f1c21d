"""One forked process that does one thing to every item it is sent; it ends with its parent and can be started again.

Items and results go through `ObjectFile`s, and pipes carry only where they stand: a handful of messages that always
fits a pipe, so neither side ever waits to send. Items lie in their files until they are answered; a process that
takes the place of a dead one finds them there.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from megatron_ext.data.preprocessing.object_file import ObjectFile
from megatron_ext.errors import MegatronExtError

_JOB = struct.Struct("<qq")  # file, end of the item
_ANSWER = struct.Struct("<q?")  # end of the result, which stands after its item; whether it is an exception
_HANDLED_BY_PARENT = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here, for a forked process may find the loader's lock taken

# glibc gives blocks of megabytes back to the system at each free, and every new one is paid in page faults: a worker
# then moves 0.9 GB/s, and 2.2 GB/s if it keeps what it has (1 MiB items, 0.5 MiB results). It keeps 64 MiB at most.
_ALLOCATOR = {-3: 32 << 20, -1: 64 << 20}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of mallopt(3)


@dataclass(frozen=True)
class Duty:
    """What every worker process does.

    Attributes:
        work: called on each item, in the worker process.
        start: called once in each worker process, before its first item.
    """

    work: Callable[[Any], Any]
    start: Callable[[], None] | None = None


@dataclass(eq=False)
class Task:
    """One item on its way: sent, answered or failed.

    Attributes:
        description: what messages call the item.
        deaths: worker processes that died while it was the item they worked on, one after the other.
        done: whether `result` or `failure` holds.
    """

    description: str
    deaths: int = 0
    done: bool = False
    result: Any = None
    failure: BaseException | None = None
    _file: int = field(default=-1, repr=False)
    _end: int = field(default=0, repr=False)

    def outcome(self) -> Any:
        """The result; raises the failure."""
        if self.failure:
            raise self.failure
        return self.result


class WorkerProcess:
    """A worker process as its parent sees it.

    Args:
        duty: what the process does.
        num_files: items it may hold at once, those it has not begun among them.

    Raises:
        OSError: no more files or processes can be opened.
    """

    def __init__(self, duty: Duty, num_files: int) -> None:
        self.pid = 0
        self.unanswered: list[Task] = []  # in the order sent, which is the order in which they are answered
        self._duty = duty
        self._files: list[ObjectFile] = []
        self._free: list[int] = list(range(num_files))
        self._jobs: Connection | None = None
        self._answers: Connection | None = None
        with self._closing_on_error():
            for _ in range(num_files):
                self._files.append(ObjectFile())

    def fileno(self) -> int:
        """Readable when there is an answer or the process has ended."""
        assert self._answers is not None
        return self._answers.fileno()

    def start(self, others: Iterable[WorkerProcess]) -> None:
        """Fork the process, the first or the next, and let it do what is unanswered.

        Args:
            others: workers whose ends of pipes the process must not inherit, or they would never see them closed.
        """
        self._close_pipes()
        with self._closing_on_error(), contextlib.ExitStack() as ends_of_child:
            jobs, self._jobs = Pipe(duplex=False)
            ends_of_child.enter_context(jobs)
            self._answers, answers = Pipe(duplex=False)
            ends_of_child.enter_context(answers)
            with _signals_held():
                parent = os.getpid()
                self.pid = os.fork()
                if self.pid == 0:
                    _run_and_exit(lambda: self._become_worker(parent, others, jobs, answers))
        for task in self.unanswered:
            self._send_job(task)

    def send(self, item: object, task: Task) -> None:
        """Hand over an item; returns at once, whatever its size.

        Raises:
            Exception: whatever pickling the item raises.
        """
        task._file = self._free.pop()
        task._end = self._files[task._file].write(item)
        self.unanswered.append(task)
        self._send_job(task)

    def receive(self) -> bool:
        """Take one answer into its task; call when `fileno` is readable. False: the process has ended.

        Raises:
            Exception: whatever unpickling the result raises.
        """
        assert self._answers is not None
        try:
            message = self._answers.recv_bytes()
        except (EOFError, OSError):
            return False
        task = self.unanswered[0]
        result_end, failed = _ANSWER.unpack(message)
        value = self._files[task._file].read(task._end, result_end)
        task.result, task.failure = (None, value) if failed else (value, None)
        self.finish_first()
        return True

    def finish_first(self) -> None:
        """The first of the unanswered tasks has its answer; its file is free for another item."""
        task = self.unanswered.pop(0)
        task.done = True
        self._files[task._file].forget()
        self._free.append(task._file)

    def has_vanished(self) -> bool:
        """Whether the process has ended although `fileno` does not tell: something else holds its end of the pipe."""
        assert self._answers is not None
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            ended = True
        return ended and not self._answers.poll()

    def reap(self) -> int | None:
        """End the process if it has not ended, and return its exit code as subprocess has it (None if unknown)."""
        if not self.pid:
            return None
        try:
            os.kill(self.pid, signal.SIGKILL)  # changes nothing for one that has ended: it is a zombie until waited for
            _, status = os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):  # the program ignores SIGCHLD: the system has reaped it
            return None
        finally:
            self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End the process and close everything; harmless when called again."""
        self.reap()
        self._close_pipes()
        for file in self._files:
            file.close()

    def _send_job(self, task: Task) -> None:
        assert self._jobs is not None
        with contextlib.suppress(BrokenPipeError):  # it has died; that is seen, and mended, when answers are received
            self._jobs.send_bytes(_JOB.pack(task._file, task._end))

    def _close_pipes(self) -> None:
        for end in (self._jobs, self._answers):
            if end is not None:
                end.close()
        self._jobs = self._answers = None

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _become_worker(
        self, parent: int, others: Iterable[WorkerProcess], jobs: Connection, answers: Connection
    ) -> None:
        _end_with_parent(parent)
        _keep_memory()
        for worker in (self, *others):
            worker._close_pipes()
            for file in worker._files if worker is not self else ():
                file.close()
        failure = _failure_of(self._duty.start) if self._duty.start else None
        while True:
            try:
                number, item_end = _JOB.unpack(jobs.recv_bytes())
            except EOFError:
                return
            file = self._files[number]
            try:
                if failure:
                    raise failure
                result_end, failed = file.write(self._duty.work(file.read(0, item_end)), item_end), False
            except BaseException as error:
                result_end, failed = file.write(_sendable(error), item_end), True
            answers.send_bytes(_ANSWER.pack(result_end, failed))


def _run_and_exit(main: Callable[[], None]) -> NoReturn:
    """The whole life of the forked process: it must never return into the code of its parent."""
    status = 1
    try:
        gc.freeze()  # what the parent left to the collector must not be closed, or flushed to its files, from here
        main()
        status = 0
    except BrokenPipeError:
        pass  # the parent has gone
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_with_parent(parent: int) -> None:
    """No reaction to Ctrl-C, which the parent handles; the usual one to SIGTERM; death with the parent's death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED_BY_PARENT)
    with contextlib.suppress(AttributeError):  # not Linux: the worker ends when the pipe of its jobs does
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _keep_memory() -> None:
    with contextlib.suppress(AttributeError):  # another C library
        for option, value in _ALLOCATOR.items():
            _LIBC.mallopt(option, value)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """A signal that comes while the process forks waits until each side knows which one it is."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # there is none, or nobody reads it any more
            stream.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED_BY_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _failure_of(start: Callable[[], None]) -> BaseException | None:
    try:
        start()
    except BaseException as error:
        return error
    return None


def _sendable(error: BaseException) -> BaseException:
    """The exception as it can cross: with its traceback as a note, or, if it cannot, another that says what it was.

    A MegatronExtError tells the user everything by itself and gets no note.
    """
    if isinstance(error, MegatronExtError):
        return error if _survives_crossing(error) else MegatronExtError(error.what, error.rule, error.fix)
    error.add_note("In a worker process:\n" + "".join(traceback.format_exception(error)).rstrip())
    if _survives_crossing(error):
        return error
    instead = RuntimeError(f"{type(error).__qualname__}: {error}")
    instead.add_note(error.__notes__[-1])
    return instead


def _survives_crossing(error: BaseException) -> bool:
    trial = ObjectFile()
    try:
        copy = trial.read(0, trial.write(error))
    except Exception:  # whatever its pickling or unpickling raises
        return False
    finally:
        trial.close()
    return type(copy) is type(error) and str(copy) == str(error)
