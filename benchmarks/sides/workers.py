"""Processes that stay alive between rounds: one word goes to each of them, each answers with a line of JSON.

So sides that need processes of their own can take turns without being loaded again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
Answer = dict[str, Any]
PAUSE = 0.2
"""Seconds before anything that is timed, in which the threads of the side before stop spinning."""


class Workers:
    """The processes of one side, each `command` with a rank in its environment, as torchrun sets it.

    Args:
        command: what each process runs.
        processes: how many; one alone is told nothing of ranks.
        threads: OpenMP threads of each.
    """

    def __init__(self, command: list[str], processes: int, threads: int) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it lives as long as the processes
        places = {"OMP_NUM_THREADS": str(threads), "LOCAL_WORLD_SIZE": str(processes), "WORLD_SIZE": str(processes)}
        if processes > 1:
            places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._ranks = [
            subprocess.Popen(
                command,
                env=plain | places | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
            for rank in range(processes)
        ]

    def ask(self, word: str) -> list[Answer]:
        """Send one word to all ranks; their answers.

        Raises:
            SystemExit: a process ended instead.
        """
        try:
            for rank in self._ranks:
                assert rank.stdin is not None
                rank.stdin.write(f"{word}\n")
                rank.stdin.flush()
        except BrokenPipeError:
            self._fail()
        return [self._answer(rank) for rank in self._ranks]

    def seconds_of(self, index: int) -> float:
        """Seconds of a step until the last process has made it, right after one that is not counted.

        While a process waits the kernel takes pages from it, and others have the caches; its users' do not wait.
        """
        time.sleep(PAUSE)
        self.ask(f"step {index}")
        return max(float(answer["seconds"]) for answer in self.ask(f"step {index}"))

    def end(self) -> None:
        """Let the processes end; those that have not within some seconds are killed."""
        for rank in self._ranks:
            assert rank.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                rank.stdin.close()
        for rank in self._ranks:
            try:
                rank.wait(timeout=20)
            except subprocess.TimeoutExpired:
                rank.kill()
        self._errors.close()

    def _answer(self, rank: subprocess.Popen[str]) -> Answer:
        assert rank.stdout is not None
        line = rank.stdout.readline()
        return json.loads(line) if line else self._fail()

    def _fail(self) -> Answer:
        for rank in self._ranks:
            rank.kill()
            rank.wait()
        self._errors.seek(0)
        raise SystemExit(
            f"a process of {' '.join(map(str, self._ranks[0].args))} ended:\n{self._errors.read()[-4000:]}"
        )


def take_stdout() -> TextIO:
    """The stream for answers, in a worker: what anybody prints from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def timed(step: Callable[[int], Any], wait: Callable[[], object] = lambda: None) -> Callable[[int], Answer]:
    """What a worker answers to "step": its seconds, and what it returned.

    Args:
        step: on the batch of an index.
        wait: for the device, where it goes on after the call.
    """

    def timed_step(index: int) -> Answer:
        started = time.perf_counter()
        outcome = step(index)
        wait()
        return {"seconds": time.perf_counter() - started, "outcome": outcome}

    return timed_step


def serve(answers: TextIO, words: dict[str, Callable[[int], Answer]]) -> None:
    """Answer until the other side closes; a word is a name and perhaps a number, which is passed on.

    Args:
        answers: from `take_stdout`.
        words: what each name does.
    """
    for line in sys.stdin:
        name, _, number = line.strip().partition(" ")
        answers.write(json.dumps(words[name](int(number or 0))) + "\n")
        answers.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
