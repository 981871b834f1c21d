"""--profile: where the time of a step goes, and a trace for a viewer; before and after it nothing of this runs.

The steps of [--profile-step-start, --profile-step-end) are timed, then as many are traced, because tracing slows what
it shows and the waits that timing needs on a GPU would change what a trace shows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

import torch

from megatron_ext import log
from megatron_ext.atomic import fsync_path, replace_text

if TYPE_CHECKING:
    from megatron_ext.config import RunConfig
    from megatron_ext.parallel.world import World
    from megatron_ext.training.hooks import Hook, StepContext

P = ParamSpec("P")
T = TypeVar("T")

FORWARD, BACKWARD, OPTIMIZER, GRADIENTS = "forward", "backward", "optimizer", "gradients"
PIPELINE, DATA, HOOKS, OTHER = "pipeline", "data", "hooks", "other"
PHASES = {
    FORWARD: "forward",
    BACKWARD: "backward, with recomputed forward",
    OPTIMIZER: "optimizer: norm, clipping, update",
    GRADIENTS: "gradients: to zero, reduced, divided",
    PIPELINE: "pipeline: sending and waiting",
    DATA: "data: waiting for the batch",
    HOOKS: "logging and hooks",
    OTHER: "other",
}
"""The phases of an iteration, as they are printed."""

_OF_CORE = {"forward-compute": FORWARD, "backward-compute": BACKWARD}
"""Phases that megatron-core's schedules begin; its sends and receives are the pipeline, and what else it times is part
of the phase around it."""


class Recorder(Protocol):
    """What is told of every beginning and end; rank-local."""

    def enter(self, phase: str | None, name: str) -> None:
        """Something called `name` begins; it belongs to `phase`, or without one to the phase around it."""

    def leave(self) -> None:
        """What began last ends."""


class Stopwatch:
    """Charges each moment to the innermost phase, so that nothing counts twice and all of them add up to the whole.

    What a hook calls (an evaluation, a checkpoint) is the hook's.

    Args:
        synchronize: waits for the device, at every beginning and end; None on a CPU.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._synchronize = synchronize
        self._open = [(OTHER, "between phases")]
        self._charged_until = self._now()

    def enter(self, phase: str | None, name: str) -> None:
        """Charge what has passed to the phase around."""
        self.charge()
        around = self._open[-1]
        self._open.append(around if around[0] == HOOKS else (phase or around[0], name))

    def leave(self) -> None:
        """Charge what has passed to the phase that ends."""
        self.charge()
        self._open.pop()

    def charge(self) -> None:
        """Charge what has passed since the last call to the innermost phase."""
        now = self._now()
        self.seconds[self._open[-1]] += now - self._charged_until
        self._charged_until = now

    def _now(self) -> float:
        if self._synchronize is not None:
            self._synchronize()
        return time.perf_counter()


class Trace:
    """A torch.profiler trace with the phases and iterations by name.

    Args:
        device_type: "cpu", or "cuda" for its kernels beside the host's calls.
        first_iteration: number of the first iteration in it, counted from 1.
    """

    def __init__(self, device_type: str, first_iteration: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device_type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=activities)
        self._open: list[torch.profiler.record_function] = []
        self._next = first_iteration
        self._profiler.start()
        self.begin_iteration()

    def begin_iteration(self) -> None:
        """End the iteration before, where there is one, and begin the next."""
        if self._open:
            self.leave()
        self.enter(None, f"iteration {self._next}")
        self._next += 1

    def enter(self, phase: str | None, name: str) -> None:
        """Begin an event; the viewer nests events by their times."""
        event = torch.profiler.record_function(name)
        event.__enter__()
        self._open.append(event)

    def leave(self) -> None:
        """End the innermost event."""
        self._open.pop().__exit__(None, None, None)

    def write(self, path: Path) -> None:
        """Stop, and write what chrome://tracing and Perfetto read."""
        while self._open:
            self.leave()
        self._profiler.stop()
        beside = path.with_name(f".{os.getpid()}.{path.name}")  # torch compresses where a name ends in .gz
        self._profiler.export_chrome_trace(str(beside))
        fsync_path(beside)
        os.replace(beside, path)


class Timers:
    """What megatron-core calls around its parts, `timers(name).start()` and `.stop()`, handed on to a recorder.

    Source of the protocol: megatron-core 0.16.1 timers.py. Its barriers are not made: few ranks profile, and they
    would wait for the others for ever.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __call__(self, name: str, log_level: int | None = None) -> _Timer:
        """The timer of that name."""
        return _Timer(self._recorder, name)


class _Timer:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder, self._name = recorder, name

    def start(self, barrier: bool = False) -> None:
        phase = PIPELINE if self._name.endswith(("-recv", "-send")) else _OF_CORE.get(self._name)
        self._recorder.enter(phase, self._name)

    def stop(self, barrier: bool = False) -> None:
        self._recorder.leave()


class Profile:
    """Times some steps of a run, then traces as many. Rank-local: ranks differ in what they do of it.

    Outside of those steps, and without --profile, megatron-core has no timers and `phase` returns an empty context.

    Args:
        run: --profile and its steps and ranks.
        world: this rank; the logging rank times, those of --profile-ranks trace.
        configs: megatron-core's configurations that have a field `timers`, of the model and of the optimizer.
    """

    def __init__(self, run: RunConfig, world: World, configs: Iterable[Any]) -> None:
        settings = run.logging
        self.enabled = settings.profile
        self._start, self._end = settings.profile_step_start, settings.profile_step_end
        self._rank, self._device_type = world.rank, world.device.type
        self._times = self.enabled and world.is_logging_rank
        self._traces = self.enabled and world.rank in settings.profile_ranks
        self._folder = profile_folder(run)
        self._configs = list(configs)
        self._recorder: Recorder | None = None
        self._iteration = 0
        self._say: Callable[[str], None] = log.info_any_rank

    def phase(self, phase: str, name: str = "") -> contextlib.AbstractContextManager[None]:
        """A block that belongs to `phase` and has `name` in the trace."""
        return contextlib.nullcontext() if self._recorder is None else _phase(self._recorder, phase, name or phase)

    def timed(self, call: Callable[P, T], phase: str, name: str) -> Callable[P, T]:
        """`call` as a block of `phase`; `call` itself without --profile."""
        if not self.enabled:
            return call

        @functools.wraps(call)
        def timed_call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.phase(phase, name):
                return call(*args, **kwargs)

        return timed_call

    def timed_items(self, items: Iterator[T]) -> Iterator[T]:
        """`items`, the waits for which are data; `items` itself without --profile."""
        return self._timed_items(items) if self.enabled else items

    def _timed_items(self, items: Iterator[T]) -> Iterator[T]:
        while True:
            with self.phase(DATA):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def observe(self, hooks: list[Hook], iteration: int, say: Callable[[str], None]) -> list[Hook]:
        """The hooks, timed, and after them one that ends the iteration; `hooks` themselves without --profile.

        Args:
            hooks: in their order.
            iteration: how many are done when this start of the program begins.
            say: prints a line of this rank.
        """
        if not (self._times or self._traces):
            return hooks
        self._say = say
        if iteration > self._start:
            say(f"warning: nothing is profiled, {iteration} steps are done and --profile-step-start is {self._start}")
            return hooks
        self._reach(iteration)
        return [*(self.timed(hook, HOOKS, _builder(hook)) for hook in hooks), self.end_iteration]

    def end_iteration(self, context: StepContext) -> None:
        """A hook, the last one: begin and end what begins and ends after this iteration."""
        self._reach(context.state.iteration)

    def close(self) -> None:
        """Write what there is when a run ends before the last step of the profile."""
        if self._recorder is not None:
            self._say(f"warning: the run ended before the profile did, after step {2 * self._end - self._start}")
            self._finish()

    def _reach(self, iteration: int) -> None:
        self._iteration = iteration
        if iteration in (self._end, 2 * self._end - self._start):
            self._finish()
        elif isinstance(self._recorder, Trace):
            self._recorder.begin_iteration()
        if iteration == self._start and self._times:
            self._record(Stopwatch(torch.cuda.synchronize if self._device_type == "cuda" else None))
        if iteration == self._end and self._traces:
            self._record(Trace(self._device_type, iteration + 1))

    def _record(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        for config in self._configs:
            config.timers = None if recorder is None else Timers(recorder)

    def _finish(self) -> None:
        recorder, steps = self._recorder, self._iteration - self._start
        self._record(None)
        if isinstance(recorder, Stopwatch):
            recorder.charge()
        self._folder.mkdir(parents=True, exist_ok=True)
        if isinstance(recorder, Stopwatch) and steps:
            self._report(breakdown(recorder.seconds, self._start + 1, steps))
        elif isinstance(recorder, Trace):
            name = f"trace-rank-{self._rank}-iterations-{self._end + 1}-{self._iteration}.json.gz"
            recorder.write(self._folder / name)
            self._say(f"profile: trace of rank {self._rank} in {self._folder / name}")

    def _report(self, record: dict[str, Any]) -> None:
        first, last = record["iterations"]
        path = self._folder / f"step-time-iterations-{first}-{last}.json"
        replace_text(path, json.dumps({"rank": self._rank, **record}, indent=1) + "\n")
        for line in breakdown_lines(record):
            self._say(line)
        self._say(f"profile: the same numbers, and their parts, in {path}")


@contextlib.contextmanager
def _phase(recorder: Recorder, phase: str, name: str) -> Iterator[None]:
    recorder.enter(phase, name)
    try:
        yield
    finally:
        recorder.leave()


def _builder(hook: Hook) -> str:
    # "log_line_hook" of "log_line_hook.<locals>.print_training_line"
    return getattr(hook, "__qualname__", "hook").partition(".")[0]


def profile_folder(run: RunConfig) -> Path:
    """The folder of a profile: `profile` in --tensorboard-dir, else in --save, else in the working directory."""
    return Path(run.logging.tensorboard_dir or run.checkpoint.save or ".") / "profile"


def breakdown(seconds: dict[tuple[str, str], float], first_iteration: int, steps: int) -> dict[str, Any]:
    """Milliseconds per step and percent of each phase, and of all that is not forward, backward or optimizer.

    Args:
        seconds: by phase and name, over all steps.
        first_iteration: counted from 1.
        steps: how many.
    """
    whole = sum(seconds.values())
    phases = {phase: sum(value for key, value in seconds.items() if key[0] == phase) for phase in PHASES}
    outside = sum(value for phase, value in phases.items() if phase not in (FORWARD, BACKWARD, OPTIMIZER))

    def entry(value: float) -> dict[str, float]:
        return {"ms": 1000.0 * value / steps, "percent": 100.0 * value / whole}

    return {
        "iterations": [first_iteration, first_iteration + steps - 1],
        "ms_per_step": 1000.0 * whole / steps,
        "phases": {phase: entry(value) for phase, value in phases.items()},
        "outside_forward_backward_optimizer": entry(outside),
        "parts": {f"{phase}/{name}": entry(value) for (phase, name), value in sorted(seconds.items())},
    }


def breakdown_lines(record: dict[str, Any]) -> list[str]:
    """The breakdown as a table, one line per phase."""
    first, last = record["iterations"]
    lines = [f"profile: iterations {first} to {last}, {record['ms_per_step']:.1f} ms per step, of which"]
    for phase, words in PHASES.items():
        entry = record["phases"][phase]
        lines.append(f"profile:   {words:<37} {entry['ms']:10.1f} ms {entry['percent']:5.1f} %")
    outside = record["outside_forward_backward_optimizer"]["percent"]
    return [*lines, f"profile: outside forward, backward and optimizer: {outside:.1f} %"]
