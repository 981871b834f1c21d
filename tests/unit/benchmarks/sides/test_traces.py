"""What the benchmarks read out of a profile: bytes as torch allocates them, and times as the intervals say."""

import pytest
import torch
from torch.profiler import record_function

from benchmarks.sides.traces import BEGIN, END, collectives_of, peak_between_marks, trace_of

MIB = 1 << 20


def mark(name: str) -> None:
    with record_function(name):
        pass


def test_the_peak_is_the_most_bytes_held_between_the_marks_beyond_those_before():
    def work() -> None:
        before = torch.empty(5 * MIB, dtype=torch.uint8)
        larger = torch.empty(90 * MIB, dtype=torch.uint8)
        del larger
        mark(BEGIN)
        first = torch.empty(3 * MIB, dtype=torch.uint8)
        second = torch.empty(4 * MIB, dtype=torch.uint8)  # 7 beyond what was there
        del first, before  # 1 below it
        third = torch.empty(6 * MIB, dtype=torch.uint8)  # 5
        mark(END)
        after = torch.empty(80 * MIB, dtype=torch.uint8)
        del second, third, after

    assert peak_between_marks(trace_of(work, memory=True)) == 7 * MIB


def test_memory_that_an_operator_takes_inside_counts():
    def work() -> None:
        low, high = torch.ones(MIB, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float32)
        mark(BEGIN)
        # both operands are made fp32 before they are added: 4 MiB for the result, 4 for the first operand
        torch.add(low[:, None], high)
        mark(END)

    assert peak_between_marks(trace_of(work, memory=True)) == 8 * MIB


@pytest.mark.parametrize("marks", [[BEGIN], [END], [BEGIN, END, END]])
def test_a_trace_without_one_mark_of_each_kind_is_refused(marks: list[str]):
    with pytest.raises(SystemExit, match="marks"):
        peak_between_marks(trace_of(lambda: [mark(name) for name in marks], memory=True))


def span(name: str, begin: float, end: float, thread: int, **args: object) -> dict:
    return {"name": name, "ts": begin * 1e6, "dur": (end - begin) * 1e6, "tid": thread, "args": args}


def test_overlapping_collectives_count_once_and_are_exposed_where_the_main_thread_computes_nothing():
    summed = {"Input type": ["c10::BFloat16"], "Input Dims": [[1000, 500]]}
    gathered = {"Input type": ["float", "float"], "Input Dims": [[1000], [1000, 2]]}
    events = [
        span(BEGIN, 0, 0, 1),
        span("autograd", 0, 9, 1),  # waits for the others inside, so it is no computation
        span("gloo:all_reduce", 1, 3, 2, **summed),
        span("gloo:all_reduce", 2, 4, 3, **summed),
        span("gloo:all_gather", 6, 7, 2, **gathered),
        span("aten::mm", 2.5, 3.5, 1),
        span("aten::copy_", 6, 7, 2),  # a copy of the collective's own thread
    ]
    found = collectives_of(events)
    assert found["by_kind"] == {
        "all_reduce c10::BFloat16": {"calls": 2, "mb": 2.0, "seconds": 4.0},
        "all_gather float": {"calls": 1, "mb": 0.012, "seconds": 1.0},
    }
    assert (found["seconds"], found["exposed_seconds"]) == (4.0, 3.0)
